"""The demo's nodes: load a small model, choose an emoji, see the result large enough."""

from __future__ import annotations

import functools

import comfy.utils
import torch
from comfy_api.latest import ComfyExtension, io

from . import models

CATEGORY = "SpeCa/demo"
NO_MOTION = "any"


@functools.cache
def _names(kind: str, what: str) -> list[str]:
    """Classes or motions of a shipped model; nothing when its file is not there."""
    path = models.FILES[kind]
    return list(getattr(models.read_config(path), what)) if path.is_file() else []


def _config(model) -> models.EmojiConfig:
    config = getattr(model.model, "speca_emoji", None)
    if config is None:
        raise ValueError("This node works with the small emoji models only: connect 'Load Emoji FLUX (demo)'.")
    return config


class LoadFlux(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpeCaDemoLoadFlux",
            display_name="Load Emoji FLUX (demo)",
            category=CATEGORY,
            description="A small FLUX, ComfyUI's own class, trained on 32x32 emoji. It runs in seconds on a CPU.",
            inputs=[],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(models.load_flux())


class LoadHunyuanVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpeCaDemoLoadHunyuanVideo",
            display_name="Load Emoji HunyuanVideo (demo)",
            category=CATEGORY,
            description="A small HunyuanVideo, ComfyUI's own class, trained on short 32x32 emoji clips.",
            inputs=[],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(models.load_hunyuan_video())


class Prompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpeCaDemoPrompt",
            display_name="Choose Emoji (demo)",
            category=CATEGORY,
            description="The conditioning of one emoji; negative is the null class.",
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("emoji", options=_names("flux", "classes") or ["none"], tooltip="What to draw."),
                io.Combo.Input(
                    "motion",
                    options=[NO_MOTION, *_names("hunyuan_video", "motions")],
                    default=NO_MOTION,
                    tooltip="What it does in a clip. Pictures ignore it; 'any' lets the model choose.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(id="positive", display_name="positive"),
                io.Conditioning.Output(id="negative", display_name="negative"),
            ],
        )

    @classmethod
    def execute(cls, model, emoji: str, motion: str) -> io.NodeOutput:
        kind, path = _config(model).kind, model.model.speca_emoji_path
        motions = None if motion == NO_MOTION else motion
        return io.NodeOutput(
            models.conditioning(kind, emoji, motions, path),
            models.null_conditioning(kind, path),
        )


class EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpeCaDemoLatent",
            display_name="Empty Emoji Latent (demo)",
            category=CATEGORY,
            description="The shape the model was trained on: a 32x32 picture, or a clip of such pictures.",
            inputs=[io.Model.Input("model"), io.Int.Input("batch_size", default=1, min=1, max=64)],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, model, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput(models.empty_latent(_config(model).kind, batch_size, model.model.speca_emoji_path))


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SpeCaDemoDecode",
            display_name="Decode Emoji (demo)",
            category=CATEGORY,
            description="Pixel-space latents as images, enlarged. The frames of a clip become a batch of images.",
            inputs=[
                io.Latent.Input("samples"),
                io.Int.Input("enlarge", default=8, min=1, max=32, tooltip="Factor by which each side grows."),
                io.Combo.Input("method", options=["lanczos", "nearest-exact", "bicubic"], default="lanczos"),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, samples: dict, enlarge: int, method: str) -> io.NodeOutput:
        return io.NodeOutput(decode(samples["samples"], enlarge, method))


def decode(latents: torch.Tensor, enlarge: int = 1, method: str = "lanczos") -> torch.Tensor:
    """(B, 3, H, W) or (B, 3, T, H, W) in [-1, 1] -> IMAGE (B or B * T, enlarge * H, enlarge * W, 3) in [0, 1].

    Raises:
        ValueError: for latents of a VAE, which have other channels.
    """
    if latents.shape[1] != 3:
        raise ValueError(f"these latents have {latents.shape[1]} channels; pixel-space ones have 3. Use 'VAE Decode'.")
    if latents.ndim == 5:
        latents = latents.movedim(2, 1).flatten(0, 1)
    images = ((latents.float() + 1) / 2).clamp(0, 1)
    if enlarge > 1:
        height, width = images.shape[-2:]
        images = comfy.utils.common_upscale(images, width * enlarge, height * enlarge, method, "disabled").clamp(0, 1)
    return images.movedim(1, -1)


class EmojiDemo(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        loaders = {"flux": LoadFlux, "hunyuan_video": LoadHunyuanVideo}
        # What a user installs has only the demo's own model.
        present = [loader for kind, loader in loaders.items() if models.FILES[kind].is_file()]
        return [*present, Prompt, EmptyLatent, Decode]
