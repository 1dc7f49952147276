"""The small emoji models as ComfyUI models: built from its own classes, loaded from `benchmarks/zoo/models`.

A model file holds the network (`diffusion_model.*`), the table that turns a class into conditioning (`condition.*`)
and, in the safetensors metadata under `speca_emoji`, the architecture, its sizes and the class and motion names.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import safetensors.torch
import torch
from torch import Tensor, nn

from . import versions

MODELS = Path(__file__).resolve().parent.parent / "models"
"""Where the trained models lie: beside this pack's real folder, also when that is linked into `custom_nodes`."""
METADATA_KEY = "speca_emoji"
FILES = {"flux": MODELS / "flux-emoji.safetensors", "hunyuan_video": MODELS / "hunyuan-video-emoji.safetensors"}
"""Kind of model -> its file."""


class PixelSpace(comfy.latent_formats.LatentFormat):
    """Latents that are the picture itself, RGB in [-1, 1]."""

    latent_channels = 3

    def __init__(self):
        self.latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class PixelSpaceClip(PixelSpace):
    """The same with frames: (B, 3, T, H, W)."""

    latent_dimensions = 3


class EmojiFlux(comfy.supported_models.Flux):
    """ComfyUI's FLUX (flow matching, shift 1.15) on pictures instead of VAE latents."""

    latent_format = PixelSpace


class EmojiHunyuanVideo(comfy.supported_models.HunyuanVideo):
    """ComfyUI's HunyuanVideo (flow matching) on clips instead of VAE latents."""

    latent_format = PixelSpaceClip


MODEL_CONFIGS = {"flux": EmojiFlux, "hunyuan_video": EmojiHunyuanVideo}


@dataclass(frozen=True)
class EmojiConfig:
    """Everything that is needed to rebuild a model: stored with its weights."""

    kind: str
    unet: dict
    classes: list[str]
    size: int = 32
    frames: int = 1
    motions: list[str] = field(default_factory=list)
    class_tokens: int = 4
    motion_tokens: int = 0
    sampling: dict = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> EmojiConfig:
        return EmojiConfig(**json.loads(text))


class ConditionTable(nn.Module):
    """Class (and motion) numbers -> context tokens and pooled vector, in the place of text encoders.

    The last row of each table is the null class, trained by dropping the condition, for the negative conditioning.
    """

    def __init__(self, config: EmojiConfig):
        super().__init__()
        self.width: int = config.unet["context_in_dim"]
        self.null_class = len(config.classes)
        self.null_motion = len(config.motions)
        pooled: int = config.unet["vec_in_dim"]
        self.class_context = nn.Embedding(self.null_class + 1, config.class_tokens * self.width)
        self.class_pooled = nn.Embedding(self.null_class + 1, pooled)
        self.motion_context = self.motion_pooled = None
        if config.motions:
            self.motion_context = nn.Embedding(self.null_motion + 1, config.motion_tokens * self.width)
            self.motion_pooled = nn.Embedding(self.null_motion + 1, pooled)

    def forward(self, labels: Tensor, motions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,) int64 labels, (B,) motions -> context (B, tokens, width), pooled (B, vec_in_dim)."""
        context = self.class_context(labels)
        pooled = self.class_pooled(labels)
        if self.motion_context is not None and self.motion_pooled is not None:
            if motions is None:
                motions = torch.full_like(labels, self.null_motion)
            context = torch.cat((context, self.motion_context(motions)), 1)
            pooled = pooled + self.motion_pooled(motions)
        return context.view(labels.shape[0], -1, self.width), pooled


def build(config: EmojiConfig, dtype: torch.dtype = torch.float32, device: torch.device | None = None):
    """ComfyUI's BaseModel of this architecture, weights uninitialised."""
    model_config = MODEL_CONFIGS[config.kind](versions.fitted(copy.deepcopy(config.unet)))
    model_config.sampling_settings = {**model_config.sampling_settings, **config.sampling}
    model_config.set_inference_dtype(dtype, None)
    return model_config.get_model({}, "", device=device)


def read_config(path: Path) -> EmojiConfig:
    """The configuration in a model file's metadata.

    Raises:
        ValueError: when the file is not one of these models.
    """
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if METADATA_KEY not in metadata:
        raise ValueError(f"{path.name} is not a small emoji model: its metadata has no '{METADATA_KEY}'")
    return EmojiConfig.from_json(metadata[METADATA_KEY])


def load(path: str | Path, dtype: torch.dtype | None = None) -> comfy.model_patcher.ModelPatcher:
    """A model file as ComfyUI's MODEL, memory-managed like any other.

    Args:
        path: of a safetensors file written by `benchmarks/zoo/training`.
        dtype: of the weights; by default fp32 on the CPU and what ComfyUI chooses for the size on a GPU.

    Returns:
        The patcher. `patcher.model.speca_emoji` is its `EmojiConfig`.

    Raises:
        ValueError: when the file is not one of these models, or lacks weights.
    """
    path = Path(path)
    config = read_config(path)
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    tensors = safetensors.torch.load_file(path)
    prefix = "diffusion_model."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if dtype is None:
        supported = MODEL_CONFIGS[config.kind].supported_inference_dtypes
        dtype = comfy.model_management.unet_dtype(
            model_params=sum(v.numel() for v in weights.values()), supported_dtypes=supported
        )
    model = build(config, dtype, offload_device)
    weights = versions.renamed(weights, model.diffusion_model.state_dict().keys())
    missing, unexpected = model.diffusion_model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(f"{path.name} does not fit its own configuration: missing {missing}, unexpected {unexpected}")
    model.speca_emoji = config
    model.speca_emoji_path = str(path)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)


def load_flux(path: str | Path | None = None) -> comfy.model_patcher.ModelPatcher:
    """The small FLUX, by default the one that is shipped."""
    return load(path or FILES["flux"])


def load_hunyuan_video(path: str | Path | None = None) -> comfy.model_patcher.ModelPatcher:
    """The small HunyuanVideo, by default the one that is shipped."""
    return load(path or FILES["hunyuan_video"])


@functools.lru_cache(maxsize=4)
def _condition_table(path: str) -> tuple[EmojiConfig, ConditionTable]:
    config = read_config(Path(path))
    table = ConditionTable(config).requires_grad_(False)
    tensors = safetensors.torch.load_file(path)
    prefix = "condition."
    table.load_state_dict({k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)})
    return config, table


def _numbers(wanted: str | int | Sequence[str | int], names: list[str], what: str) -> Tensor:
    """Names or numbers -> (B,) int64."""
    items = [wanted] if isinstance(wanted, (str, int)) else list(wanted)
    numbers = []
    for item in items:
        if isinstance(item, str) and item not in names:
            raise ValueError(f"no {what} is called '{item}': choose one of {', '.join(names)}")
        number = names.index(item) if isinstance(item, str) else int(item)
        if not 0 <= number < len(names):
            raise ValueError(f"{what} {number} is out of range: there are 0 to {len(names) - 1}")
        numbers.append(number)
    return torch.tensor(numbers)


def _as_conditioning(context: Tensor, pooled: Tensor) -> list:
    return [[context, {"pooled_output": pooled}]]


def conditioning(
    kind: str,
    classes: str | int | Sequence[str | int],
    motions: str | int | Sequence[str | int] | None = None,
    path: str | Path | None = None,
) -> list:
    """ComfyUI CONDITIONING for one class, or for a batch of as many classes.

    Args:
        kind: "flux" or "hunyuan_video".
        classes: name or number, or B of them for a batch of B different pictures.
        motions: the same for clips; ignored by models that know none.
        path: of the model file, by default the one that is shipped.

    Returns:
        `[[context (B, tokens, width), {"pooled_output": (B, vec_in_dim)}]]`.

    Raises:
        ValueError: for a class or motion that the model does not know.
    """
    config, table = _condition_table(str(path or FILES[kind]))
    labels = _numbers(classes, config.classes, "emoji")
    numbers = None
    if config.motions and motions is not None:
        numbers = _numbers(motions, config.motions, "motion")
        labels, numbers = torch.broadcast_tensors(labels, numbers)
    return _as_conditioning(*table(labels, numbers))


def null_conditioning(kind: str, path: str | Path | None = None) -> list:
    """The negative CONDITIONING: the class (and motion) that stands for none."""
    config, table = _condition_table(str(path or FILES[kind]))
    motions = torch.tensor([len(config.motions)]) if config.motions else None
    return _as_conditioning(*table(torch.tensor([len(config.classes)]), motions))


def latent_shape(kind: str, batch: int = 1, path: str | Path | None = None) -> tuple[int, ...]:
    """(B, 3, 32, 32) for pictures, (B, 3, T, 32, 32) for clips."""
    config = read_config(Path(path or FILES[kind]))
    if MODEL_CONFIGS[kind].latent_format.latent_dimensions == 3:
        return (batch, 3, config.frames, config.size, config.size)
    return (batch, 3, config.size, config.size)


def empty_latent(kind: str, batch: int = 1, path: str | Path | None = None) -> dict[str, Tensor]:
    """ComfyUI LATENT of zeros in the model's shape."""
    return {"samples": torch.zeros(latent_shape(kind, batch, path))}


def sample(
    model: comfy.model_patcher.ModelPatcher,
    classes: str | int | Sequence[str | int],
    motions: str | int | Sequence[str | int] | None = None,
    *,
    seed: int = 0,
    steps: int = 28,
    cfg: float = 1.0,
    sampler: str = "euler",
    scheduler: str = "simple",
    callback=None,
) -> Tensor:
    """Pictures (B, 3, 32, 32) or clips (B, 3, T, 32, 32), nominally in [-1, 1], by ComfyUI's own sampling."""
    config: EmojiConfig = model.model.speca_emoji
    path = model.model.speca_emoji_path
    positive = conditioning(config.kind, classes, motions, path)
    latent = empty_latent(config.kind, positive[0][0].shape[0], path)["samples"]
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, seed),
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        null_conditioning(config.kind, path),
        latent,
        denoise=1.0,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
