"""DiT as a model of ComfyUI: its sampling settings, latent format, conditioning, and a memory-managed loader."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch

from .checkpoint import NOTES_TENSOR, CheckpointError, DiTCheckpoint, DiTConfig, pack_notes, read_checkpoint
from .labels import UnknownClassError, imagenet_classes, parse_labels
from .model import DiT

LABELS_KEY = "dit_labels"
"""Where a CONDITIONING's dict keeps the class labels: (N,) int64, negative for the null class."""

VAE_DOWNSCALE = 8
"""Pixels per latent pixel, along each side, of the SD VAE."""

DEFAULT_INPUT_SIZE = 32
"""Side in latent pixels for a file that does not show it: the paper's 256 x 256 pictures through the SD VAE."""

# XL/2's cost by a latent pixel is PixArt-alpha's, whose factor ComfyUI has measured.
_XL2_MEMORY_FACTOR = 0.5
_XL2_WIDTH_BY_PATCH = 1152 / 2**2


class PixelSpace(comfy.latent_formats.LatentFormat):
    """Three channels in [-1, 1]: the picture itself, as ComfyUI's "pixel_space" VAE takes and gives it."""

    latent_channels = 3
    spacial_downscale_ratio = 1  # newer ComfyUI scales empty latents by it, and spells it so

    def __init__(self) -> None:
        self.latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


LATENT_FORMATS = {3: PixelSpace, 4: comfy.latent_formats.SD15}
"""By the network's input channels. The authors' models use the SD VAE, scaled by 0.18215."""


class DiTModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI asks of a supported model.

    The betas are linear from 1e-4 to 2e-2 over 1000 steps, which ComfyUI calls "sqrt_linear"; its "linear" is linear in
    the square root.
    """

    unet_config = {"image_model": "dit"}  # noqa: RUF012 - ComfyUI's base class copies it for each instance
    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012
    sampling_settings = {  # noqa: RUF012
        "beta_schedule": "sqrt_linear",
        "linear_start": 1e-4,
        "linear_end": 2e-2,
        "timesteps": 1000,
    }
    latent_format = comfy.latent_formats.SD15

    def __init__(self, config: DiTConfig, class_names: tuple[str, ...] | None = None):
        super().__init__({"image_model": "dit", **asdict(config)})
        self.latent_format = LATENT_FORMATS[config.in_channels]()
        self.memory_usage_factor = _XL2_MEMORY_FACTOR * config.hidden_size / config.patch_size**2 / _XL2_WIDTH_BY_PATCH
        self.config = config
        self.class_names = class_names

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add what the shapes do not say, so that what ComfyUI saves can be loaded again."""
        notes = {NOTES_TENSOR: pack_notes(self.config, self.class_names)}
        return super().process_unet_state_dict_for_saving({**state_dict, **notes})

    def get_model(self, state_dict: dict[str, torch.Tensor], prefix: str = "", device: Any = None) -> DiTModel:
        return DiTModel(self, device=device).eval()


class DiTModel(comfy.model_base.BaseModel):
    """A DiT that predicts noise; the class labels come from the CONDITIONING."""

    def __init__(self, model_config: DiTModelConfig, device: Any = None):
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=DiT)
        self.class_names = model_config.class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are, the null class not counted."""
        return self.diffusion_model.num_classes

    @property
    def known_class_names(self) -> tuple[str, ...] | None:
        """The file's class names, or ImageNet's for a model with as many classes, or None."""
        imagenet = imagenet_classes()
        return self.class_names or (imagenet if self.num_classes == len(imagenet) else None)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The labels as the network's `y`, (N,) int64; ComfyUI repeats them to the batch.

        Raises:
            ValueError: for a conditioning without labels, or with a label that this model does not have.
        """
        labels = kwargs.get(LABELS_KEY)
        if labels is None:
            raise ValueError(
                "This DiT is conditioned on a class, but the conditioning has none. "
                "Connect 'DiT Class Label' to both positive and negative of the sampler, in place of a text prompt."
            )
        if labels.max() >= self.num_classes:
            raise ValueError(
                f"There is no class {int(labels.max())}: this model's classes are numbered 0 to "
                f"{self.num_classes - 1}. Connect the model to 'DiT Class Label' to choose among its own."
            )
        zeroed = kwargs.get("cross_attn")
        if zeroed is not None and not zeroed.any():  # after ConditioningZeroOut, which means: no condition
            labels = torch.full_like(labels, -1)
        null = torch.full_like(labels, self.num_classes)
        return {"y": comfy.conds.CONDRegular(torch.where(labels < 0, null, labels))}


def class_conditioning(labels: list[int]) -> list[list[Any]]:
    """A CONDITIONING for one sample by label, in the order of the batch; a negative label is the null class."""
    # Core nodes expect a tensor first. Ones, because zeros are what ConditioningZeroOut leaves.
    return [[torch.ones(1, 1, 1), {"pooled_output": None, LABELS_KEY: torch.tensor(labels, dtype=torch.long)}]]


def dit_of(model: comfy.model_patcher.ModelPatcher) -> DiTModel:
    """The DiT behind a MODEL.

    Raises:
        ValueError: when it is another kind of model.
    """
    if not isinstance(model.model, DiTModel):
        raise ValueError(
            f"This node works with a DiT only, but the model is a {type(model.model).__name__}. "
            "Connect the MODEL of 'Load DiT'."
        )
    return model.model


def choose_labels(typed: str, listed: str, model: DiTModel | None) -> list[int]:
    """The labels a person asked for: those typed, or, if nothing was, the one picked from ImageNet's list.

    Args:
        typed: as for `labels.parse_labels`; may be blank.
        listed: an entry of `labels.numbered(imagenet_classes())`.
        model: the model to name the classes of; None means ImageNet's.

    Raises:
        labels.UnknownClassError: for an unknown class, or for nothing typed and a model of other classes.
    """
    imagenet = imagenet_classes()
    names = imagenet if model is None else model.known_class_names
    num_classes = len(imagenet) if model is None else model.num_classes
    if not typed.strip() and names != imagenet:
        some = "" if names is None else f", such as '{names[0]}'"
        raise UnknownClassError(
            f"'{listed}' is a class of ImageNet, but this model has {num_classes} classes of its own. Type a number "
            f"from 0 to {num_classes - 1}{' or a name' if names else ''} into 'classes'{some}."
        )
    return parse_labels(typed.strip() or listed, names, num_classes)


def empty_latent(model: DiTModel, batch_size: int, width: int = 0, height: int = 0) -> dict[str, torch.Tensor]:
    """A LATENT of zeros in the model's own space: (batch_size, C, H, W).

    Args:
        model: decides the channels and, where width or height is 0, the size: the one it was trained on.
        batch_size: number of pictures.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """
    downscale = getattr(model.latent_format, "spacial_downscale_ratio", VAE_DOWNSCALE)
    trained = model.diffusion_model.input_size or DEFAULT_INPUT_SIZE
    rows, columns = (max(side // downscale, 1) if side else trained for side in (height, width))
    shape = (batch_size, model.latent_format.latent_channels, rows, columns)
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def load_dit(
    path: str | Path, dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """Load a DiT as `comfy.sd.load_diffusion_model` loads a model ComfyUI knows.

    Args:
        path: see `checkpoint.read_checkpoint`.
        dtype: of the weights; None lets ComfyUI choose by the file, the device and its arguments.
        disable_dynamic: keep out of newer ComfyUI's dynamic memory; ComfyUI itself asks for it.

    Raises:
        CheckpointError: when the file is not a DiT, or one of an unsupported latent space.
    """
    patcher = patcher_from_checkpoint(read_checkpoint(path), Path(path).name, dtype, disable_dynamic)
    patcher.cached_patcher_init = (load_dit, (path, dtype))  # how newer ComfyUI makes a second copy
    return patcher


def patcher_from_checkpoint(
    checkpoint: DiTCheckpoint, name: str, dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The model of a checkpoint that has been read, on its offload device; see `load_dit`."""
    config = checkpoint.config
    if config.in_channels not in LATENT_FORMATS:
        raise CheckpointError(
            f"{name} is a {config.name} for {config.in_channels} channels. Supported are 4 (the SD VAE's latents) "
            "and 3 (pixels)."
        )
    weights = dict(checkpoint.state_dict)
    model_config = DiTModelConfig(config, checkpoint.class_names)
    management = comfy.model_management
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    supported = list(model_config.supported_inference_dtypes)
    if dtype is None:
        dtype = management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(weights),
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(weights),
        )
    model_config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, load_device, supported))

    model = model_config.get_model(weights)
    # Newer ComfyUI pages weights in on demand; there a patcher takes the file's tensors over instead of copying them.
    patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    if disable_dynamic:
        patcher_class = comfy.model_patcher.ModelPatcher
    model.to(offload_device)
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    dynamic = hasattr(patcher, "is_dynamic") and patcher.is_dynamic()
    model.load_model_weights(weights, "", **({"assign": True} if dynamic else {}))
    logging.info(f"Loaded {config.name} from {name}: {config.num_classes} classes, input size {config.input_size}")
    return patcher
