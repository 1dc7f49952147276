"""A model of the zoo as a ComfyUI model: its network, its table of conditionings, its file.

A file holds the network (`diffusion_model.*`) and the table that turns a class into conditioning (`condition.*`); its
metadata has the classes and what is known of the training. Everything else is the spec's.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .emoji_pack import versions
from .specs import ZOO, Spec

MODELS = Path(__file__).resolve().parent / "models"
Conditioning = list[list[Any]]


class Condition(nn.Module):
    """Class numbers -> context tokens and pooled vector, in the place of text encoders. The last class is the null one.

    A DiT takes the number itself: then this table is empty.
    """

    def __init__(self, spec: Spec, n_classes: int) -> None:
        super().__init__()
        self.null = n_classes
        self.by_number = spec.model_class == "DiT"
        self._shape = (spec.tokens, spec.width)
        self._masked = spec.masked
        if not self.by_number:
            self.context = nn.Embedding(n_classes + 1, spec.tokens * spec.width)
            self.second = nn.Embedding(n_classes + 1, spec.tokens * spec.width) if spec.encoders > 1 else None
            self.pooled = nn.Embedding(n_classes + 1, spec.pooled) if spec.pooled else None

    def forward(self, labels: Tensor) -> Conditioning:
        """(B,) int64 -> a ComfyUI CONDITIONING of B rows."""
        if self.by_number:
            from speca.dit.comfy_model import class_conditioning

            return class_conditioning([-1 if label == self.null else label for label in labels.tolist()])
        pooled = None if self.pooled is None else self.pooled(labels)  # named also where there is none, as by encoders
        options: dict[str, Any] = {"pooled_output": pooled}
        mask = torch.ones(len(labels), self._shape[0], dtype=torch.int64, device=labels.device)
        if self._masked:
            options["attention_mask"] = mask
        if self.second is not None:  # as `CLIPTextEncodeHunyuanDiT` has it
            options["conditioning_mt5xl"] = self.second(labels).view(len(labels), *self._shape)
            options["attention_mask_mt5xl"] = mask
        return [[self.context(labels).view(len(labels), *self._shape), options]]


def model_of(spec: Spec, n_classes: int, dtype: torch.dtype = torch.float32, device: Any = None) -> Any:
    """ComfyUI's BaseModel of a spec, weights as its class leaves them (often uninitialised)."""
    if spec.model_class == "DiT":
        from speca.dit.checkpoint import DiTConfig
        from speca.dit.comfy_model import DiTModelConfig

        config = DiTModelConfig(DiTConfig(**spec.unet, num_classes=n_classes))
    else:
        config = getattr(comfy.supported_models, spec.model_class)(copy.deepcopy(versions.fitted(spec.unet)))
    config.latent_format = _latent_format(spec)
    config.sampling_settings = {**config.sampling_settings, **spec.sampling}
    config.set_inference_dtype(dtype, None)
    return config.get_model({}, "", device=device)


def _latent_format(spec: Spec) -> comfy.latent_formats.LatentFormat:
    """Latents are the picture itself, in [-1, 1], with `fold` x `fold` pixels in the channels."""
    form = comfy.latent_formats.LatentFormat()
    form.latent_channels = spec.channels
    form.latent_dimensions = len(spec.latent_shape) - 1
    form.latent_rgb_factors = None
    return form


def to_latent(spec: Spec, pictures: Tensor) -> Tensor:
    """(B, 3, [T,] size, size) in [-1, 1] -> latents (B, *spec.latent_shape)."""
    if spec.frames:
        b, _, t = pictures.shape[:3]
        folded = F.pixel_unshuffle(pictures.transpose(1, 2).flatten(0, 1), spec.fold)
        return folded.unflatten(0, (b, t)).transpose(1, 2)
    return F.pixel_unshuffle(pictures, spec.fold).view(pictures.shape[0], *spec.latent_shape)


def to_pictures(spec: Spec, latents: Tensor) -> Tensor:
    """Latents -> pictures or clips in [-1, 1]; the inverse of `to_latent`."""
    if spec.frames:
        b, _, t = latents.shape[:3]
        unfolded = F.pixel_shuffle(latents.transpose(1, 2).flatten(0, 1), spec.fold)
        return unfolded.unflatten(0, (b, t)).transpose(1, 2)
    return F.pixel_shuffle(latents.reshape(-1, spec.channels, *latents.shape[-2:]), spec.fold)


def path_of(name: str) -> Path:
    return MODELS / f"{name}.safetensors"


def facts_of(name: str) -> dict[str, Any]:
    """The metadata of a model's file: `classes` and `training`."""
    with safetensors.safe_open(path_of(name), framework="pt") as file:
        metadata = file.metadata()
    return {"classes": json.loads(metadata["classes"]), "training": json.loads(metadata["training"])}


def load_weights(name: str, network: nn.Module, condition: Condition) -> None:
    """Put a trained model's weights into its network and table. Raises FileNotFoundError where it is not trained."""
    tensors = safetensors.torch.load_file(path_of(name))
    for module, prefix in ((network, "diffusion_model."), (condition, "condition.")):
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(versions.renamed(weights, module.state_dict()))


def load(name: str, dtype: torch.dtype = torch.float32) -> tuple[comfy.model_patcher.ModelPatcher, Condition]:
    """A trained model of the zoo as ComfyUI's MODEL, and its table of conditionings.

    Raises KeyError for a name that is not in the zoo, FileNotFoundError where it has not been trained.
    """
    spec, n_classes = ZOO[name], len(facts_of(name)["classes"])
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    model = model_of(spec, n_classes, dtype, offload)
    condition = Condition(spec, n_classes).requires_grad_(False)
    load_weights(name, model.diffusion_model, condition)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload), condition


def conditionings(condition: Condition, labels: Sequence[int]) -> tuple[Conditioning, Conditioning]:
    """(positive of as many rows as labels, negative of one)."""
    return condition(torch.tensor(list(labels))), condition(torch.tensor([condition.null]))
