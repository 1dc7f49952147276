"""The models that the contract suite runs over: `tiny_models`, variants of them, and DiT.

A variant is one of `tiny_models.SPECS` with another configuration or with further conditioning (a reference picture,
a concatenated frame, a face, a voice); what is not in there at all is stated in full.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch

import newer_models
import tiny_models
from tiny_models import N_TOKENS, POOLED, SPECS, WIDTH, Prompt, Spec, TinyModel, gaussian

IMAGE, VIDEO = (1, 16, 8, 8), (1, 16, 3, 8, 8)


@dataclass(frozen=True)
class Variant:
    """`base` with another `model_class`, `config` entries, `latent` shape, `prompt`, or further conditioning.

    None keeps what `base` has.
    """

    base: str
    model_class: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    latent: tuple[int, ...] | None = None
    prompt: Prompt | None = None
    conditioning: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> Spec:
        spec = SPECS[self.base]
        prompt = self.prompt or spec.prompt
        prompt = replace(prompt, fixed=prompt.fixed | self.conditioning)
        return replace(
            spec,
            model_class=self.model_class or spec.model_class,
            config=dict(spec.config) | self.config,
            latent=self.latent or spec.latent,
            prompt=prompt,
        )


def _reference(*shape: int) -> dict[str, Any]:
    return {"reference_latents": [gaussian(*shape, seed=7)]}


VARIANTS: dict[str, Variant] = {
    "flux_kontext": Variant("flux", conditioning=_reference(*IMAGE)),
    "flux_fill": Variant(
        "flux",
        "FluxInpaint",
        {"in_channels": 96, "out_channels": 16},
        conditioning={"concat_latent_image": gaussian(*IMAGE, seed=7), "concat_mask": torch.ones(1, 1, 64, 64)},
    ),
    "flux2_edit": Variant("flux2", conditioning=_reference(1, 128, 4, 4)),
    "hunyuan_video_i2v_concat": Variant(
        "hunyuan_video",
        "HunyuanVideoI2V",
        {"in_channels": 33, "out_channels": 16},
        conditioning={"concat_latent_image": gaussian(*VIDEO, seed=7), "concat_mask": torch.ones(1, 1, 3, 8, 8)},
    ),
    "hunyuan_video_i2v_replace": Variant(
        "hunyuan_video", conditioning={"guiding_frame_index": 0, "ref_latent": gaussian(1, 16, 1, 8, 8, seed=7)}
    ),
    "hunyuan_video15_no_single": Variant("hunyuan_video15", config={"depth": 3, "depth_single_blocks": 0}),
    "wan21_i2v_clip": Variant(
        "wan21_i2v",
        conditioning={
            "clip_vision_output": SimpleNamespace(penultimate_hidden_states=gaussian(1, 257, 1280, seed=7)),
            "concat_latent_image": gaussian(*VIDEO, seed=7),
            "concat_mask": torch.ones(1, 1, 3, 8, 8),
        },
    ),
    "wan21_camera": Variant(
        "wan21",
        "WAN21_Camera",
        {"model_type": "camera", "in_dim": 32, "in_dim_control_adapter": 6},
        conditioning={"camera_conditions": gaussian(1, 6, 3, 64, 64, seed=7)},
    ),
    "wan22_animate": Variant(
        "wan21",
        "WAN22_Animate",
        {"model_type": "animate", "in_dim": 36, "num_layers": 5},
        conditioning={"pose_video_latent": gaussian(1, 16, 2, 8, 8, seed=7)},
    ),
    "wan22_animate_face": Variant(
        "wan21",
        "WAN22_Animate",
        {"model_type": "animate", "in_dim": 36, "num_layers": 5},
        conditioning={"face_video_pixels": gaussian(1, 3, 5, 16, 16, seed=7)},
    ),
    "wan22_s2v": Variant(
        "wan21",
        "WAN22_S2V",
        {"model_type": "s2v", "audio_dim": 16, "audio_inject_layers": [0, 2]},
        conditioning=_reference(1, 16, 1, 8, 8) | {"audio_embed": gaussian(1, 25, 16, 12, seed=7)},
    ),
    "wan21_humo": Variant(
        "wan21",
        "WAN21_HuMo",
        {"model_type": "humo"},
        conditioning=_reference(1, 16, 1, 8, 8) | {"audio_embed": gaussian(1, 3, 8, 5, 1280, seed=7)},
    ),
    "qwen_image_edit": Variant("qwen_image", conditioning=_reference(1, 16, 1, 8, 8)),
    "sd35_medium": Variant(
        "sd3",
        config={
            "depth": 3,
            "x_block_self_attn_layers": [0, 1],
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": WIDTH, "out_features": 192},
            },
        },
    ),
    "omnigen2_edit": Variant("omnigen2", conditioning=_reference(*IMAGE)),
    "chroma_radiance": Variant(
        "chroma",
        "ChromaRadiance",
        {
            "image_model": "chroma_radiance",
            "in_channels": 3,
            "out_channels": 3,
            "patch_size": 4,
            "nerf_hidden_size": 16,
            "nerf_mlp_ratio": 2,
            "nerf_depth": 1,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 0,
            "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": torch.float32,
        },
        (1, 3, 16, 16),
    ),
    # In place of the one in `tiny_models`, whose text features have their real widths and take most of the time.
    "hunyuan_dit": Variant(
        "hunyuan_dit",
        config={"depth": 6, "text_states_dim": 64, "text_states_dim_t5": 64},
        prompt=Prompt(
            (1, 77, 64),
            random={"conditioning_mt5xl": (1, 256, 64)},
            fixed={"attention_mask": torch.ones(1, 77), "attention_mask_mt5xl": torch.ones(1, 256)},
        ),
    ),
    "hunyuan3d21": Variant(
        "hunyuan3d2",
        "Hunyuan3Dv2_1",
        {
            "image_model": "hunyuan3d2_1",
            "context_dim": WIDTH,
            "depth": 5,
            "num_moe_layers": 2,
            "num_experts": 2,
            "moe_top_k": 1,
            "guidance_cond_proj_dim": 64,
        },
    ),
}

ADDITIONAL: dict[str, Spec] = {
    "ace_step": Spec(
        "ACEStep",
        {
            "audio_model": "ace",
            "num_layers": 3,
            "inner_dim": 64,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "mlp_ratio": 2.0,
            "text_embedding_dim": WIDTH,
            "lyric_encoder_vocab_size": 32,
            "lyric_hidden_size": 64,
            "ssl_latent_dims": [16, 16],
        },
        (1, 8, 16, 12),
        Prompt(fixed={"conditioning_lyrics": torch.arange(5)[None], "lyrics_strength": 1.0}),
        cfg=3.0,
    ),
    "stable_audio": Spec(
        "StableAudio",
        {
            "audio_model": "dit1.0",
            "embed_dim": 64,
            "cond_token_dim": 768,
            "project_cond_tokens": True,  # or there were more heads of keys than of queries
            "global_cond_dim": 1536,
            "depth": 3,
            "num_heads": 2,
        },
        (1, 64, 32),
        Prompt((1, N_TOKENS, 768)),
        cfg=3.0,
    ),
}

_OF_ONE_SIZE = frozenset({"MiniMaxMusic3"})

# Beside its own number of samples a network of this class insists on cond and uncond in one call.
NEEDS_COND_AND_UNCOND = frozenset({"hunyuan3d21"})

# What the network gives is another tensor than the latent (picture and sound apart), or does not follow from it.
OUTPUT_WITHOUT_LATENT = frozenset({"minimax_h3", "ltx2", "ltx23", "ltx25", "wan21_flow_rvs"})

# Part of each block runs on accepted calls too: the branch of Wan-Animate 2's pose video.
HALF_A_BLOCK_ALWAYS_RUNS = frozenset({"wan_animate2"})

NAMES: tuple[str, ...] = tuple(
    dict.fromkeys((*tiny_models.TRANSFORMERS, *VARIANTS, *ADDITIONAL, "dit", *newer_models.SPECS))
)


def wider(latent: dict[str, Any]) -> dict[str, Any]:
    """Zeros twice as wide as `latent`; of picture and sound, the picture."""
    if "shapes" not in latent:
        *shape, width = latent["samples"].shape
        return {"samples": torch.zeros(*shape, 2 * width)}
    (*picture, width), sound = latent["shapes"]
    spec = Spec("", {}, (*picture, 2 * width), sound=sound)
    return spec.empty_latent(picture[0])


def model_class(name: str) -> str:
    """The class of `comfy.supported_models` that `name` is built of; empty for DiT, which is this project's own."""
    return "" if name == "dit" else spec_of(name).model_class


def spec_of(name: str) -> Spec:
    return VARIANTS[name].spec() if name in VARIANTS else (SPECS | ADDITIONAL | newer_models.SPECS)[name]


def config_of(name: str) -> Any:
    """The configured instance of `comfy.supported_models` that `name` is built of."""
    return tiny_models.config_of(spec_of(name), {})


def missing(name: str) -> str:
    """Why the ComfyUI that is there cannot build `name`; empty if it can."""
    import comfy.supported_models
    import comfyui_version

    wanted = model_class(name)
    if not wanted or hasattr(comfy.supported_models, wanted):
        return ""
    return f"ComfyUI {comfyui_version.__version__} has no {wanted}"


def build(name: str, *, batch: int = 1, **config: Any) -> TinyModel:
    """The tiny model `name` of `NAMES`, as `tiny_models.build` makes it."""
    if name == "dit":
        return _dit(batch)
    if name not in (VARIANTS | ADDITIONAL | newer_models.SPECS):
        return tiny_models.build(name, batch=batch, **config)
    spec = spec_of(name)
    if name == "stable_audio":
        return from_spec(spec, batch, config, _stable_audio_state_dict())
    return from_spec(spec, batch, config)


def from_spec(
    spec: Spec, batch: int = 1, config: dict[str, Any] | None = None, state_dict: dict[str, torch.Tensor] | None = None
) -> TinyModel:
    """What `spec` describes with `config` entries of its own, and what ComfyUI reads beside the network."""
    model_config = tiny_models.config_of(spec, config or {})
    model_config.set_inference_dtype(torch.float32, None)
    # Without memory where the class's one size is too large to be made and thrown away.
    device = torch.device("meta" if spec.model_class in _OF_ONE_SIZE else "cpu")
    model = model_config.get_model(state_dict or {}, "", device=device)
    _shrink(model.diffusion_model)
    model.to(torch.float32)
    tiny_models.randomise(model.diffusion_model)
    _fill_rotary_frequencies(model.diffusion_model)
    latent, prompt = spec.empty_latent(batch), spec.prompt
    return TinyModel(tiny_models.patcher_of(model), latent, prompt.encode(100), prompt.encode(200), spec.cfg)


def _stable_audio_state_dict() -> dict[str, torch.Tensor]:
    """What ComfyUI reads from the checkpoint beside the network: the embedders of start and length."""
    import comfy.ldm.audio.embedders

    embedder = comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512)
    tiny_models.randomise(embedder)
    prefixes = ("conditioner.conditioners.seconds_start.", "conditioner.conditioners.seconds_total.")
    return {prefix + key: value for prefix in prefixes for key, value in embedder.state_dict().items()}


def _fill_rotary_frequencies(network: Any) -> None:
    """Stable Audio reads them from its checkpoint, into a buffer that is memory as it was found until then."""
    for name, buffer in network.named_buffers():
        if name.endswith("rotary_pos_emb.inv_freq"):
            count = buffer.shape[0]
            buffer.copy_(10000.0 ** -(torch.arange(count) / count))


class _Motion(torch.nn.Module):
    """Stands in for Animate's motion encoder, which takes a minute for five faces here. (B, 3, H, W) -> (B, 512)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(512, 3))

    def get_motion(self, faces: torch.Tensor) -> torch.Tensor:
        return faces.mean(dim=(2, 3)) @ self.weight.T.to(faces)


def _shrink(network: Any) -> None:
    """Make small what a configuration cannot: encoders of the conditioning, and networks of one size."""
    if type(network).__name__ == "NaDiT":  # SeedVR2's own prompts, which its checkpoint fills
        network.positive_conditioning.zero_()
        network.negative_conditioning.zero_()
    if type(network).__name__ == "MiniMaxMusic3DiT":
        _shrink_music(network)
    if hasattr(network, "motion_encoder"):
        network.motion_encoder = _Motion()
    if hasattr(network, "lyric_encoder"):
        import comfy.ops

        network.lyric_encoder = type(network.lyric_encoder)(
            input_size=64,
            output_size=64,
            attention_heads=4,
            linear_units=64,
            num_blocks=1,
            static_chunk_size=0,
            dtype=torch.float32,
            device="cpu",
            operations=comfy.ops.disable_weight_init,
        ).eval()


def _shrink_music(network: Any) -> None:
    """MiniMax Music 3 takes no sizes: four of its own blocks, 64 wide, in the place of 36 of 2048."""
    import comfy.ldm.minimax_music.dit
    import comfy.ops

    made: tuple[Any, ...] = (torch.float32, "cpu", comfy.ops.disable_weight_init)
    linear = functools.partial(comfy.ops.disable_weight_init.Linear, dtype=torch.float32, device="cpu")
    diffusion = network.diffusion_transformer
    transformer = diffusion.transformer
    diffusion.to_timestep_embed = torch.nn.Sequential(linear(256, 64), torch.nn.SiLU(), linear(64, 64))
    transformer.project_in, transformer.project_out = linear(2304, 64, bias=False), linear(64, 128, bias=False)
    block = comfy.ldm.minimax_music.dit.TransformerBlock
    transformer.layers = torch.nn.ModuleList(block(64, 16, 128, *made) for _ in range(4))
    transformer.rotary_pos_emb = type(transformer.rotary_pos_emb)(16, torch.float32, "cpu")
    network.to_empty(device="cpu")
    for name, buffer in network.named_buffers():
        if name.endswith(".beta"):
            buffer.zero_()


def _dit(batch: int) -> TinyModel:
    import dit_helpers
    from speca.dit.comfy_model import class_conditioning

    patcher = dit_helpers.patcher()
    latent = {"samples": torch.zeros(batch, 4, 8, 8)}
    positive, negative = class_conditioning([1] * batch), class_conditioning([-1] * batch)
    return TinyModel(patcher, latent, positive, negative, 3.0)


Build = Callable[..., TinyModel]
__all__ = ["ADDITIONAL", "NAMES", "NEEDS_COND_AND_UNCOND", "POOLED", "VARIANTS", "Build", "build"]
