"""The zoo: which networks are trained on what. Data alone; `build` makes them, `train` trains them.

Each is a class of ComfyUI's own, or this pack's DiT, made small. They differ in what a cache's rule could be fitted to
by accident: architecture, prediction (flow, noise, EDM), shift, patch, width, depth, size and kind of picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Spec:
    """One model of the zoo.

    family: the real model whose class this is. model_class: of `comfy.supported_models`, or "DiT" for this pack's own.
    unet: the arguments of the network. source: a name of `data.SOURCES`.
    size: side of a picture in pixels; frames: of a clip, 0 for pictures.
    fold: pixels of a square that become channels of one latent pixel, as a VAE without loss would have it.
    depth: blocks of the real model, for speedups computed for it. sampling: what differs from the class's own settings.
    zero: parts of the names of parameters that start at nothing. tokens: of a class's conditioning. encoders: that it
    comes from; HunyuanDiT has two. masked: whether they give a mask of their tokens.
    teacher, guidance: the model of the zoo from whose weights this one starts, to give in one call what that one gives
    with guidance of this scale; as the released FLUX.1-dev and HunyuanVideo are distilled from models that need two.
    """

    name: str
    family: str
    model_class: str
    unet: dict[str, Any]
    source: str
    depth: int
    size: int = 32
    frames: int = 0
    fold: int = 1
    sampling: dict[str, Any] = field(default_factory=dict)
    zero: tuple[str, ...] = ()
    tokens: int = 4
    width: int = 32
    pooled: int = 0
    encoders: int = 1
    masked: bool = False
    steps: int = 6000
    batch: int = 12
    lr: float = 1.5e-3
    noise_mean: float = 0.3
    teacher: str = ""
    guidance: float = 1.0

    @property
    def channels(self) -> int:
        return 3 * self.fold**2

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W), or (C, T, H, W) where the class works on clips (T = 1 for its pictures)."""
        side = self.size // self.fold
        if self.frames or self.model_class in CLASSES_OF_CLIPS:
            return (self.channels, max(self.frames, 1), side, side)
        return (self.channels, side, side)


CLASSES_OF_CLIPS = ("HunyuanVideo", "WAN21_T2V", "CosmosT2V", "CosmosT2IPredict2", "QwenImage", "LTXV")
"""Their latents have a dimension for time even where there is one frame."""

_FLUX = {
    "image_model": "flux",
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "mlp_ratio": 2.0,
    "theta": 1000,
    "qkv_bias": True,
    "guidance_embed": False,
}
_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 12,
    "cap_feat_dim": 32,
    "dim": 96,
    "n_layers": 10,
    "n_refiner_layers": 1,
    "n_heads": 3,
    "n_kv_heads": 3,
    "qk_norm": True,
    "multiple_of": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 64, 64],
    "rope_theta": 1000.0,
    "ffn_dim_multiplier": 0.75,
}

_COSMOS = {
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 4,
    "in_channels": 12,
    "out_channels": 12,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 96,
    "num_blocks": 9,
    "num_heads": 2,
    "concat_padding_mask": False,
    "crossattn_emb_channels": 32,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "rope_h_extrapolation_ratio": 1.0,
    "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 1.0,
    "mlp_ratio": 2.0,
}
"""What Cosmos 1 and Predict2 share."""

_MODULATED = ("_mod.lin", "modulation.lin", "adaLN_modulation", "final_layer.linear")


def _flux(channels: int, patch: int, heads: int, axes: list[int], depth: int, single: int) -> dict[str, Any]:
    return _FLUX | {
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": patch,
        "hidden_size": heads * sum(axes),
        "num_heads": heads,
        "axes_dim": axes,
        "depth": depth,
        "depth_single_blocks": single,
    }


def _plain(channels: int, side: int, patch: int, width: int, heads: int, depth: int) -> dict[str, Any]:
    return {
        "input_size": side,
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": 2.0,
    }


def _dit(channels: int, side: int, patch: int, width: int, heads: int, depth: int) -> dict[str, Any]:
    return {**_plain(channels, side, patch, width, heads, depth), "learn_sigma": False}


_TRAINED_ON_PICTURES: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            name="flux-fluent",
            family="FLUX",
            model_class="Flux",
            unet=_flux(3, patch=4, heads=2, axes=[16, 16, 16], depth=2, single=8),
            source="fluent",
            depth=57,
            zero=_MODULATED,
            pooled=32,
        ),
        Spec(
            name="flux-photographs",
            family="FLUX",
            model_class="Flux",
            unet=_flux(12, patch=2, heads=2, axes=[16, 16, 16], depth=2, single=7),
            source="photographs",
            depth=57,
            size=64,
            fold=2,
            sampling={"shift": 3.0},  # FLUX's is a logarithm: 20 in SD3's terms
            zero=_MODULATED,
            pooled=32,
            batch=6,
            noise_mean=0.6,
        ),
        Spec(
            name="hunyuan-arcade",
            family="HunyuanVideo",
            model_class="HunyuanVideo",
            unet={
                **_FLUX,
                "image_model": "hunyuan_video",
                "in_channels": 12,
                "out_channels": 12,
                "patch_size": [1, 2, 2],
                "axes_dim": [16, 16, 16],
                "hidden_size": 96,
                "num_heads": 2,
                "depth": 2,
                "depth_single_blocks": 9,
                "theta": 256,
                "byt5": False,
                "meanflow": False,
                "use_cond_type_embedding": False,
                "vision_in_dim": None,
            },
            source="arcade",
            depth=60,
            size=32,
            frames=3,
            fold=2,
            zero=_MODULATED,
            pooled=32,
            steps=4000,
            batch=8,
            noise_mean=0.8,
        ),
        Spec(
            name="wan-doom",
            family="Wan",
            model_class="WAN21_T2V",
            unet={
                "image_model": "wan2.1",
                "model_type": "t2v",
                "dim": 96,
                "ffn_dim": 192,
                "num_heads": 2,
                "num_layers": 10,
                "freq_dim": 256,
                "in_dim": 12,
                "out_dim": 12,
                "text_dim": 32,
                "text_len": 8,
                "patch_size": (1, 2, 2),
                "window_size": (-1, -1),
                "qk_norm": True,
                "cross_attn_norm": True,
                "eps": 1e-6,
            },
            source="doom",
            depth=40,
            size=32,
            frames=3,
            fold=2,
            zero=("head.head",),
            steps=4000,
            batch=8,
            noise_mean=0.6,
        ),
        Spec(
            name="dit-clipart",
            family="DiT",
            model_class="DiT",
            unet=_dit(3, side=32, patch=4, width=64, heads=2, depth=28),
            source="clipart",
            depth=28,
            noise_mean=0.0,
        ),
        Spec(
            name="dit-units",
            family="DiT",
            model_class="DiT",
            unet=_dit(3, side=64, patch=4, width=96, heads=2, depth=10),
            source="units",
            depth=28,
            size=64,
            batch=6,
            noise_mean=0.0,
        ),
        Spec(
            name="qwen-stamps",
            family="Qwen-Image",
            model_class="QwenImage",
            unet={
                "image_model": "qwen_image",
                "in_channels": 48,
                "out_channels": 12,
                "num_layers": 9,
                "attention_head_dim": 32,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "axes_dims_rope": (8, 12, 12),
            },
            source="stamps",
            depth=60,
            fold=2,
            zero=("img_mod.1", "txt_mod.1", "norm_out.linear", "proj_out"),
        ),
        Spec(
            name="lumina-clipart",
            family="Lumina 2",
            model_class="Lumina2",
            unet=_LUMINA,
            source="clipart",
            depth=26,
            fold=2,
            zero=("adaLN_modulation", "final_layer.linear"),
        ),
        Spec(
            name="cosmos-fluent",
            family="Cosmos 1",
            model_class="CosmosT2V",
            unet=_COSMOS
            | {
                "image_model": "cosmos",
                "block_config": "FA-CA-MLP",
                "pos_emb_learnable": False,
                "block_x_format": "THWBD",
                "affline_emb_norm": True,
                "extra_per_block_abs_pos_emb": True,
                "extra_per_block_abs_pos_emb_type": "learnable",
            },
            source="fluent",
            depth=28,
            fold=2,
            zero=("adaLN_modulation.2", "final_layer.linear"),
            noise_mean=-0.6,
        ),
        Spec(
            name="dit-clipart-64",
            family="DiT",
            model_class="DiT",
            unet=_dit(3, side=64, patch=4, width=96, heads=2, depth=12),
            source="clipart",
            depth=28,
            size=64,
            batch=6,
            noise_mean=0.0,
        ),
        Spec(
            name="pixart-units",
            family="PixArt",
            model_class="PixArtSigma",
            unet={
                "image_model": "pixart_sigma",
                **_plain(3, side=64, patch=4, width=96, heads=2, depth=10),
                "caption_channels": 32,
                "model_max_length": 4,
                "pe_interpolation": 1,
                "class_dropout_prob": 0.0,
                "pred_sigma": False,
                "qk_norm": True,
                "micro_condition": False,
            },
            source="units",
            depth=28,
            size=64,
            zero=("t_block.1", "scale_shift_table", "cross_attn.proj", "final_layer.linear"),
            batch=6,
            noise_mean=0.0,
        ),
        Spec(
            name="hunyuan-dit-units",
            family="HunyuanDiT",
            model_class="HunyuanDiT",
            unet={
                "image_model": "hydit",
                **_plain(3, side=64, patch=4, width=96, heads=2, depth=10),
                "text_states_dim": 32,
                "text_states_dim_t5": 32,
                "text_len": 4,
                "text_len_t5": 4,
                "learn_sigma": False,
            },
            source="units",
            depth=40,
            size=64,
            zero=("default_modulation", "attn2.out_proj", "final_layer"),
            encoders=2,
            masked=True,
            batch=6,
            noise_mean=0.0,
        ),
        Spec(
            name="auraflow-twitter",
            family="AuraFlow",
            model_class="AuraFlow",
            unet={
                "in_channels": 12,
                "out_channels": 12,
                "max_seq": 64,
                "cond_seq_dim": 32,
                "n_double_layers": 2,
                "n_layers": 10,
                "dim": 96,
                "n_heads": 3,
                "global_conddim": 96,
            },
            source="twitter",
            depth=36,
            fold=2,
            zero=("modC", "modX", "modF", "final_linear"),
        ),
        Spec(
            name="predict2-camera",
            family="Cosmos Predict2",
            model_class="CosmosT2IPredict2",
            unet=_COSMOS
            | {
                "image_model": "cosmos_predict2",
                "pos_emb_learnable": True,
                "min_fps": 1,
                "max_fps": 30,
                "extra_per_block_abs_pos_emb": False,
                "extra_h_extrapolation_ratio": 1.0,
                "extra_w_extrapolation_ratio": 1.0,
                "extra_t_extrapolation_ratio": 1.0,
                "rope_enable_fps_modulation": False,
            },
            source="camera",
            depth=28,
            frames=3,
            fold=2,
            zero=(
                "adaln_modulation_self_attn.2",
                "adaln_modulation_cross_attn.2",
                "adaln_modulation_mlp.2",
                "adaln_modulation.2",
                "final_layer.linear",
            ),
            steps=3000,
            batch=8,
            noise_mean=0.6,
        ),
    )
}


def _distilled(teacher: str, guidance: float) -> Spec:
    spec = _TRAINED_ON_PICTURES[teacher]
    return replace(spec, name=f"{teacher}-distilled", teacher=teacher, guidance=guidance, steps=1500, lr=5e-4)


UNSEEN: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec(
            name="lumina-landscapes",
            family="Lumina 2",
            model_class="Lumina2",
            unet=_LUMINA,
            source="landscapes",
            depth=26,
            fold=2,
            zero=("adaLN_modulation", "final_layer.linear"),
            steps=5000,
        ),
        Spec(
            name="chroma-stills",
            family="Chroma",
            model_class="Chroma",
            unet={
                "image_model": "chroma",
                "in_channels": 48,
                "out_channels": 48,
                "context_in_dim": 32,
                "hidden_size": 96,
                "mlp_ratio": 2.0,
                "num_heads": 2,
                "depth": 3,
                "depth_single_blocks": 8,
                "axes_dim": [16, 16, 16],
                "theta": 1000,
                "patch_size": 2,
                "qkv_bias": True,
                "in_dim": 64,
                "out_dim": 96,
                "hidden_dim": 96,
                "n_layers": 2,
            },
            source="stills",
            depth=57,
            size=64,
            fold=2,
            zero=("distilled_guidance_layer.out_proj", "final_layer.linear"),
            steps=5000,
            batch=6,
        ),
        Spec(
            name="ltxv-previews",
            family="LTX-Video",
            model_class="LTXV",
            unet={
                "image_model": "ltxv",
                "in_channels": 48,
                "cross_attention_dim": 96,
                "attention_head_dim": 48,
                "num_attention_heads": 2,
                "caption_channels": 32,
                "num_layers": 10,
                "positional_embedding_theta": 100.0,
                "positional_embedding_max_pos": [1, 256, 256],
            },
            source="previews",
            depth=28,
            frames=3,
            fold=4,
            zero=("adaln_single.linear", "scale_shift_table", "proj_out"),
            masked=True,
            steps=4000,
            batch=8,
            noise_mean=0.6,
        ),
    )
}
"""They learn what no other learns, and are measured for the first time when the rule is fixed. Nothing was chosen on
them or judged by them, so their figures are those of a model that nobody has seen. Whoever changes the rule by them
makes others in their place, and puts them among the others, as was done with auraflow-twitter and predict2-camera."""

_DISTILLED: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        _distilled("hunyuan-arcade", 6.0),
        _distilled("dit-units", 4.0),
        _distilled("flux-fluent", 3.5),
    )
}

ZOO: dict[str, Spec] = _TRAINED_ON_PICTURES | _DISTILLED | UNSEEN
"""Name -> spec, in the order in which they are trained. The scales of guidance are those that the released models of
these families are used with."""
