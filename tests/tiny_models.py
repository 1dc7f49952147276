"""Every transformer that ComfyUI can build small, as a tiny model with random weights.

Each model is a genuine class of `comfy.supported_models`, given a small configuration, wrapped in a genuine
`ModelPatcher` and sampled by `comfy.sample`. No file is read. Random weights show that the plumbing is right;
they say nothing about quality or acceptance rates.

    tiny = build("flux")
    samples = ksample(*tiny, steps=8)
    patched = ksample(*tiny._replace(model_patcher=other_patcher))

Importing this module needs torch only (so that `SPECS` can parametrise tests); `build` and `ksample` need ComfyUI
on `sys.path`. GenmoMochi is missing because its blocks assert their real sizes.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

N_TOKENS = 7  # prompt length; odd, so that it is never confused with a number of latent tokens
WIDTH = 48  # width of the text features wherever the architecture leaves it free
POOLED = 32

Conditioning = list[list[Any]]


def gaussian(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Prompt:
    """What ComfyUI's text encoders would give this architecture: random features, pooled vector and extras.

    `features` is the shape of the prompt's tokens, `random` names further random tensors by their shape, `fixed`
    are values passed on as they are.
    """

    features: tuple[int, ...] = (1, N_TOKENS, WIDTH)
    pooled: int | None = None
    random: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)

    def encode(self, seed: int) -> Conditioning:
        options: dict[str, Any] = {
            "pooled_output": None if self.pooled is None else gaussian(1, self.pooled, seed=seed + 1)
        }
        options |= {name: gaussian(*shape, seed=seed + 3) for name, shape in self.random.items()}
        options |= self.fixed
        return [[gaussian(*self.features, seed=seed), options]]


@dataclass(frozen=True)
class Spec:
    """One architecture: a class of `comfy.supported_models`, its small configuration and inputs that fit it.

    `latent` is (batch, channels, [frames,] height, width); Hunyuan3D's is (batch, channels, tokens). `cfg` is a
    guidance scale that the architecture is used with; 1 means that only the positive prompt is evaluated. `sound` is
    the shape of a second latent, of those that make picture and sound.
    """

    model_class: str
    config: dict[str, Any]
    latent: tuple[int, ...]
    prompt: Prompt = Prompt()
    cfg: float = 1.0
    sound: tuple[int, ...] | None = None

    def empty_latent(self, batch: int) -> dict[str, Any]:
        """A LATENT of zeros. Picture and sound are packed in one tensor, (B, 1, N), as ComfyUI packs them to sample;
        their shapes are beside it."""
        if self.sound is None:
            return {"samples": torch.zeros((batch, *self.latent[1:]))}
        shapes = [(batch, *self.latent[1:]), (batch, *self.sound[1:])]
        return {"samples": torch.zeros(batch, 1, sum(math.prod(shape[1:]) for shape in shapes)), "shapes": shapes}


class TinyModel(NamedTuple):
    """Ready to sample: the arguments of `ksample`, in its order."""

    model_patcher: ModelPatcher
    latent: dict[str, torch.Tensor]
    positive: Conditioning
    negative: Conditioning
    cfg: float


_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": POOLED,
    "context_in_dim": WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
_HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": POOLED,
    "axes_dim": [4, 6, 6],
    "context_in_dim": WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
_WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 64,
    "ffn_dim": 128,
    "num_heads": 4,
    "num_layers": 3,
    "freq_dim": 256,
    "in_dim": 16,
    "out_dim": 16,
    "text_dim": WIDTH,
    "text_len": 16,
    "patch_size": (1, 2, 2),
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "context_dim": 32,
    "legacy": False,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
_PIXART = {
    "num_heads": 4,
    "patch_size": 2,
    "in_channels": 4,
    "depth": 2,
    "caption_channels": WIDTH,
    "model_max_length": 16,
    "input_size": 16,
    "pe_interpolation": 1,
}
_LUMINA2 = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": WIDTH,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "multiple_of": 32,
}
_Z_IMAGE = _LUMINA2 | {
    "dim": 256,
    "n_heads": 16,
    "n_kv_heads": 16,
    "axes_dims": [4, 6, 6],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "num_blocks": 2,
    "num_heads": 2,
    "concat_padding_mask": True,
    "crossattn_emb_channels": WIDTH,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}

_IMAGE = (1, 16, 8, 8)
_VIDEO = (1, 16, 3, 8, 8)
_POOLED = Prompt(pooled=POOLED)
_MASKED = {"attention_mask": torch.ones(1, N_TOKENS, dtype=torch.long)}

SPECS: dict[str, Spec] = {
    # The two U-Nets have no transformer to speculate on: they must pass through SpeCa untouched.
    "sd15": Spec(
        "SD15",
        _UNET
        | {
            "model_channels": 32,
            "transformer_depth": [1, 1],
            "transformer_depth_output": [1, 1, 1, 1],
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
        },
        (1, 4, 8, 8),
        Prompt((1, N_TOKENS, 32), pooled=32),
        cfg=5.0,
    ),
    "sdxl": Spec(
        "SDXL",
        _UNET
        | {
            "model_channels": 64,
            "transformer_depth": [0, 1],
            "transformer_depth_output": [0, 0, 1, 1],
            "num_classes": "sequential",
            "adm_in_channels": 2816,
        },
        (1, 4, 8, 8),
        Prompt((1, N_TOKENS, 32), pooled=1280),
        cfg=5.0,
    ),
    "sd3": Spec(
        "SD3",
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": POOLED,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": WIDTH, "out_features": 128},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [],
        },
        _IMAGE,
        _POOLED,
        cfg=5.0,
    ),
    "flux": Spec("Flux", _FLUX, _IMAGE, Prompt(pooled=POOLED, fixed={"guidance": 3.5})),
    "flux_schnell": Spec("FluxSchnell", _FLUX | {"guidance_embed": False}, _IMAGE, _POOLED),
    "flux2": Spec(
        "Flux2",
        {
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "vec_in_dim": None,
            "context_in_dim": WIDTH,
            "hidden_size": 64,
            "mlp_ratio": 3.0,
            "num_heads": 4,
            "depth": 1,
            "depth_single_blocks": 2,
            "axes_dim": [4, 4, 4, 4],
            "theta": 2000,
            "patch_size": 1,
            "qkv_bias": False,
            "guidance_embed": True,
            "global_modulation": True,
            "mlp_silu_act": True,
            "ops_bias": False,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
            "txt_ids_dims": [3],
        },
        (1, 128, 4, 4),
        Prompt(fixed={"guidance": 4.0}),
    ),
    "chroma": Spec(
        "Chroma",
        {
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "context_in_dim": WIDTH,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 4,
            "depth": 2,
            "depth_single_blocks": 2,
            "axes_dim": [4, 6, 6],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 64,
            "n_layers": 2,
        },
        _IMAGE,
        cfg=3.0,
    ),
    "hunyuan_video": Spec("HunyuanVideo", _HUNYUAN_VIDEO, _VIDEO, Prompt(pooled=POOLED, fixed={"guidance": 6.0})),
    "hunyuan_video15": Spec(
        "HunyuanVideo15",
        _HUNYUAN_VIDEO
        | {
            "in_channels": 65,
            "out_channels": 32,
            "vec_in_dim": None,
            "patch_size": [1, 1, 1],
            "guidance_embed": False,
            "use_cond_type_embedding": True,
            "vision_in_dim": 1152,
        },
        (1, 32, 2, 4, 4),
    ),
    "hunyuan_image21": Spec(
        "HunyuanImage21",
        _HUNYUAN_VIDEO
        | {
            "in_channels": 64,
            "out_channels": 64,
            "patch_size": [1, 1],
            "vec_in_dim": None,
            "axes_dim": [8, 8],
            "guidance_embed": False,
        },
        (1, 64, 4, 4),
        cfg=3.0,
    ),
    "wan21": Spec("WAN21_T2V", _WAN, _VIDEO, cfg=5.0),
    "wan21_i2v": Spec("WAN21_I2V", _WAN | {"model_type": "i2v", "in_dim": 36}, _VIDEO, cfg=5.0),
    "wan21_vace": Spec(
        "WAN21_Vace", _WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, _VIDEO, cfg=5.0
    ),
    "wan22_5b": Spec("WAN22_T2V", _WAN | {"in_dim": 48, "out_dim": 48}, (1, 48, 3, 4, 4), cfg=5.0),
    "qwen_image": Spec(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 6, 6),
        },
        _IMAGE,
        cfg=3.0,
    ),
    "lumina2": Spec(
        "Lumina2",
        _LUMINA2
        | {
            "dim": 48,
            "n_heads": 4,
            "n_kv_heads": 2,
            "axes_dims": [4, 4, 4],
            "axes_lens": [300, 512, 512],
            "rope_theta": 10000.0,
            "ffn_dim_multiplier": 1.0,
        },
        _IMAGE,
        cfg=3.0,
    ),
    "z_image": Spec("ZImage", _Z_IMAGE, _IMAGE),
    "ltxv": Spec(
        "LTXV",
        {
            "image_model": "ltxv",
            "in_channels": 128,
            "cross_attention_dim": 64,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "caption_channels": WIDTH,
            "num_layers": 2,
        },
        (1, 128, 3, 4, 4),
        Prompt(fixed=_MASKED | {"frame_rate": 25}),
        cfg=3.0,
    ),
    "pixart_alpha": Spec(
        "PixArtAlpha",
        _PIXART | {"image_model": "pixart_alpha", "hidden_size": 96, "micro_condition": True},
        (1, 4, 34, 34),
        Prompt(fixed={"width": 64, "height": 64}),
        cfg=4.0,
    ),
    "pixart_sigma": Spec(
        "PixArtSigma",
        _PIXART | {"image_model": "pixart_sigma", "hidden_size": 64, "micro_condition": False},
        (1, 4, 34, 34),
        cfg=4.0,
    ),
    "hunyuan_dit": Spec(
        "HunyuanDiT",
        {
            "image_model": "hydit",
            "depth": 4,
            "hidden_size": 64,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "text_states_dim": 1024,
            "text_states_dim_t5": 2048,
        },
        (1, 4, 8, 8),
        Prompt(
            (1, 77, 1024),
            random={"conditioning_mt5xl": (1, 256, 2048)},
            fixed={"attention_mask": torch.ones(1, 77), "attention_mask_mt5xl": torch.ones(1, 256)},
        ),
        cfg=4.0,
    ),
    "auraflow": Spec(
        "AuraFlow",
        {
            "max_seq": 64,
            "cond_seq_dim": WIDTH,
            "n_double_layers": 1,
            "n_layers": 3,
            "dim": 64,
            "n_heads": 4,
            "global_conddim": 64,
        },
        (1, 4, 8, 8),
        cfg=3.0,
    ),
    "cosmos1": Spec(
        "CosmosT2V",
        _COSMOS
        | {
            "image_model": "cosmos",
            "block_config": "FA-CA-MLP",
            "pos_emb_learnable": False,
            "block_x_format": "THWBD",
            "affline_emb_norm": True,
            "extra_per_block_abs_pos_emb": True,
            "extra_per_block_abs_pos_emb_type": "learnable",
            "rope_h_extrapolation_ratio": 1.0,
            "rope_w_extrapolation_ratio": 1.0,
            "rope_t_extrapolation_ratio": 2.0,
        },
        _VIDEO,
        cfg=3.0,
    ),
    "cosmos_predict2": Spec(
        "CosmosT2IPredict2",
        _COSMOS
        | {
            "image_model": "cosmos_predict2",
            "pos_emb_learnable": True,
            "min_fps": 1,
            "max_fps": 30,
            "extra_per_block_abs_pos_emb": False,
            "rope_h_extrapolation_ratio": 4.0,
            "rope_w_extrapolation_ratio": 4.0,
            "rope_t_extrapolation_ratio": 1.0,
            "extra_h_extrapolation_ratio": 1.0,
            "extra_w_extrapolation_ratio": 1.0,
            "extra_t_extrapolation_ratio": 1.0,
            "rope_enable_fps_modulation": False,
        },
        (1, 16, 1, 8, 8),
        cfg=3.0,
    ),
    "hidream": Spec(
        "HiDream",
        {
            "image_model": "hidream",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 4,
            "caption_channels": [WIDTH, WIDTH],
            "text_emb_dim": POOLED,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": [8, 4, 4],
            "max_resolution": [16, 16],
            "llama_layers": [0, 1],
        },
        _IMAGE,
        Prompt(pooled=POOLED, random={"conditioning_llama3": (1, 2, N_TOKENS, WIDTH)}),
        cfg=3.0,
    ),
    "omnigen2": Spec(
        "Omnigen2",
        {
            "image_model": "omnigen2",
            "axes_dim_rope": [4, 6, 6],
            "axes_lens": [1024, 1664, 1664],
            "ffn_dim_multiplier": None,
            "hidden_size": 64,
            "in_channels": 16,
            "multiple_of": 32,
            "norm_eps": 1e-5,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "out_channels": None,
            "patch_size": 2,
            "text_feat_dim": WIDTH,
            "timestep_scale": 1000.0,
        },
        _IMAGE,
        Prompt(fixed=_MASKED),
        cfg=3.0,
    ),
    "hunyuan3d2": Spec(
        "Hunyuan3Dv2",
        {
            "image_model": "hunyuan3d2",
            "in_channels": 64,
            "context_in_dim": WIDTH,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 4,
            "depth": 2,
            "depth_single_blocks": 2,
            "qkv_bias": True,
            "guidance_embed": False,
        },
        (1, 64, 16),
        cfg=3.0,
    ),
}

UNETS = frozenset({"sd15", "sdxl"})
TRANSFORMERS = tuple(name for name in SPECS if name not in UNETS)


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter: matrices keep the scale of their input, biases are small, norm scales are near 1.

    ComfyUI's layers leave their memory uninitialised, and so does the position table that SD3 and PixArt keep as a
    buffer and read from the checkpoint.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() >= 2:
                fan_in = max(1, parameter[0].numel())
                parameter.copy_(normal(parameter) / math.sqrt(fan_in))
            elif name.endswith("bias"):
                parameter.copy_(normal(parameter) * 0.02)
            else:
                parameter.copy_(1.0 + 0.02 * normal(parameter))
        for name, buffer in module.named_buffers():
            if name.rpartition(".")[2] == "pos_embed":
                buffer.copy_(normal(buffer) * 0.02)


def build(
    name: str,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 1,
    **config: Any,
) -> TinyModel:
    """The tiny model `name` of `SPECS` with weights from `seed`, an empty latent of `batch` samples and two prompts.

    `config` overrides single entries of the network's configuration, for instance `depth_single_blocks=12`.
    """
    spec = SPECS[name]
    model_config = config_of(spec, config)
    computed_in = torch.bfloat16 if dtype.itemsize == 1 else None  # no arithmetic in eight bits
    model_config.set_inference_dtype(dtype, computed_in)
    model = model_config.get_model({}, "", device=torch.device("cpu"))
    model.to(dtype)
    randomise(model.diffusion_model, seed)
    return TinyModel(
        patcher_of(model), spec.empty_latent(batch), spec.prompt.encode(100), spec.prompt.encode(200), spec.cfg
    )


def config_of(spec: Spec, changes: dict[str, Any]) -> Any:
    """The instance of `comfy.supported_models` that `spec` names, configured with `changes` for the ComfyUI here."""
    import comfy.supported_models

    fitted = _versions().fitted(spec.config | changes)
    model_config = getattr(comfy.supported_models, spec.model_class)(dict(fitted))
    # Some classes put the sizes of the one model that is released over what they are given.
    model_config.unet_config |= {key: fitted[key] for key in model_config.unet_extra_config if key in fitted}
    return model_config


@functools.cache
def _versions() -> Any:
    """`benchmarks/zoo/emoji_pack/versions.py`, by its place: this module is used by a pack in a server, too."""
    place = Path(__file__).resolve().parent.parent / "benchmarks" / "zoo" / "emoji_pack" / "versions.py"
    spec = importlib.util.spec_from_file_location("emoji_versions", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def patcher_of(model: Any) -> ModelPatcher:
    """As ComfyUI's loaders make one: the weights wait in system memory and run where ComfyUI runs models."""
    import comfy.model_management
    import comfy.model_patcher

    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def ksample(
    model_patcher: ModelPatcher,
    latent: dict[str, torch.Tensor],
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
    *,
    steps: int = 8,
    seed: int = 42,
    sampler: str = "euler",
    scheduler: str = "simple",
    denoise: float = 1.0,
    callback: Callable[..., None] | None = None,
) -> torch.Tensor:
    """What the KSampler node does, without its progress bar: noise from `seed`, then `comfy.sample.sample`."""
    import comfy.sample

    samples = latent["samples"]
    if "shapes" in latent:
        samples = unpacked(samples, latent["shapes"])
    else:
        samples = comfy.sample.fix_empty_latent_channels(model_patcher, samples)
    noise = comfy.sample.prepare_noise(samples, seed)
    made = comfy.sample.sample(
        model_patcher,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        samples,
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return packed(made) if "shapes" in latent else made


def packed(nested: Any) -> torch.Tensor:
    """ComfyUI's tensor of several tensors as one, (B, 1, N)."""
    return torch.cat([t.reshape(t.shape[0], 1, -1) for t in nested.unbind()], dim=-1)


def unpacked(samples: torch.Tensor, shapes: list[tuple[int, ...]]) -> Any:
    """The inverse of `packed`."""
    import comfy.nested_tensor

    parts = samples.split([math.prod(shape[1:]) for shape in shapes], dim=-1)
    return comfy.nested_tensor.NestedTensor([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])
