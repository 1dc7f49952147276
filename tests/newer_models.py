"""Small models of what ComfyUI has had since 0.4: the contract suite runs over them where the ComfyUI has their class.

The pinned tree has none of them; there their tests skip and say so.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tiny_models import _FLUX, _MASKED, _WAN, _Z_IMAGE, N_TOKENS, POOLED, WIDTH, Prompt, Spec, gaussian

_IMAGE, _VIDEO, _FLUX2 = (1, 16, 8, 8), (1, 16, 3, 8, 8), (1, 128, 4, 4)
_ONE_FRAME = (1, 16, 1, 8, 8)
_HEADS = {"attention_head_dim": 16, "num_attention_heads": 4}
_KREA2 = {
    "image_model": "krea2",
    "features": 64,
    "heads": 4,
    "kvheads": 2,
    "txtdim": WIDTH // 3,
    "multiplier": 2,
    "layers": 3,
    "channels": 16,
    "txtlayers": 3,
    "txtheads": 2,
    "txtkvheads": 2,
}
_JOYIMAGE = {
    "image_model": "joyimage",
    "in_channels": 16,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "text_dim": WIDTH,
    "mlp_width_ratio": 2.0,
    "num_layers": 3,
    "rope_dim_list": [4, 6, 6],
}
_COGVIDEOX = _HEADS | {
    "image_model": "cogvideox",
    "time_embed_dim": 32,
    "text_embed_dim": WIDTH,
    "num_layers": 3,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": N_TOKENS,
}
_PIXELDIT = {
    "image_model": "pixeldit_t2i",
    "num_groups": 4,
    "hidden_size": 64,
    "pixel_hidden_size": 8,
    "pixel_attn_hidden_size": 32,
    "pixel_num_groups": 2,
    "patch_depth": 3,
    "pixel_depth": 1,
    "patch_size": 4,
    "txt_embed_dim": WIDTH,
    "txt_max_length": 16,
}
_KANDINSKY5 = {
    "image_model": "kandinsky5",
    "in_text_dim": WIDTH,
    "in_text_dim2": POOLED,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 128,
    "num_text_blocks": 1,
    "num_visual_blocks": 3,
    "axes_dims": (4, 6, 6),
}
_SCAIL = {
    "pose_video_latent": gaussian(1, 16, 3, 4, 4, seed=7),
    "reference_latents": [gaussian(1, 16, 1, 8, 8, seed=8)],
}
_LTX2 = {
    "image_model": "ltxav",
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "cross_attention_dim": 64,
    "audio_attention_head_dim": 8,
    "audio_num_attention_heads": 4,
    "audio_cross_attention_dim": 32,
    "caption_channels": WIDTH,
    "num_layers": 3,
    "connector_attention_head_dim": 16,
    "connector_num_attention_heads": WIDTH // 16,
    "connector_num_layers": 1,
}
_LTX23 = _LTX2 | {
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "connector_apply_gated_attention": True,
}
_LTX23_PROMPT = Prompt((1, N_TOKENS, 64 + 32), fixed={"frame_rate": 25})
_LTX25 = _LTX23 | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}

SPECS: dict[str, Spec] = {
    "minimax_h3": Spec(
        "MiniMaxH3",
        {
            "image_model": "minimax_h3",
            "hidden_size": 64,
            "num_layers": 4,
            "token_refiner_num_layers": 1,
            "num_attention_heads": 4,
            "attention_head_dim": 16,
            "ffn_hidden_size": 128,
            "text_dim": WIDTH,
            "time_embed_hidden_size": 64,
            "time_embed_dim": 32,
            "rope_inv_freq_len": 2,
        },
        (1, 24, 2, 4, 4),
        sound=(1, 32, 2, 5),
    ),
    "krea2": Spec("Krea2", _KREA2, _ONE_FRAME, cfg=3.0),
    "krea2_edit": Spec(
        "Krea2",
        _KREA2,
        _ONE_FRAME,
        Prompt(
            fixed={
                "reference_latents": [gaussian(*_ONE_FRAME, seed=7)],
                "reference_latents_method": "index_timestep_zero",
            }
        ),
        cfg=3.0,
    ),
    "ideogram4": Spec(
        "Ideogram4",
        _HEADS
        | {
            "image_model": "ideogram4",
            "num_layers": 3,
            "intermediate_size": 64,
            "adaln_dim": 32,
            "llm_features_dim": WIDTH,
            "mrope_section": [4, 2, 2],
        },
        _FLUX2,
        cfg=3.0,
    ),
    "longcat_image": Spec(
        "LongCatImage", _FLUX | {"guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}, _IMAGE, cfg=3.0
    ),
    "mage_flow": Spec(
        "MageFlow",
        _HEADS
        | {
            "image_model": "mage_flow",
            "num_layers": 3,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 6, 6),
        },
        _FLUX2,
        cfg=3.0,
    ),
    "joyimage": Spec("JoyImage", _JOYIMAGE, _ONE_FRAME, cfg=3.0),
    "joyimage_edit": Spec(
        "JoyImage",
        _JOYIMAGE,
        _ONE_FRAME,
        Prompt(fixed={"reference_latents": [gaussian(*_ONE_FRAME, seed=7)]}),
        cfg=3.0,
    ),
    "lens": Spec(
        "Lens",
        _HEADS
        | {
            "image_model": "lens",
            "num_layers": 3,
            "enc_hidden_dim": WIDTH // 3,
            "axes_dims_rope": (4, 6, 6),
            "selected_layer_index": (0, 1, 2),
        },
        _FLUX2,
        Prompt(fixed=_MASKED),
        cfg=3.0,
    ),
    "boogu": Spec(
        "Boogu",
        {
            "image_model": "boogu",
            "hidden_size": 64,
            "num_layers": 2,
            "num_double_stream_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 32,
            "axes_dim_rope": (4, 6, 6),
            "instruction_feat_dim": WIDTH,
        },
        _IMAGE,
        Prompt(fixed=_MASKED),
        cfg=3.0,
    ),
    "ernie_image": Spec(
        "ErnieImage",
        {
            "image_model": "ernie",
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_layers": 3,
            "ffn_hidden_size": 128,
            "text_in_dim": WIDTH,
            "rope_axes_dim": (4, 6, 6),
        },
        _FLUX2,
        cfg=3.0,
    ),
    "kandinsky5": Spec(
        "Kandinsky5", _KANDINSKY5 | {"visual_embed_dim": 33 * 4}, _VIDEO, Prompt(pooled=POOLED), cfg=3.0
    ),
    "kandinsky5_image": Spec(
        "Kandinsky5Image", _KANDINSKY5 | {"visual_embed_dim": 16 * 4}, _IMAGE, Prompt(pooled=POOLED), cfg=3.0
    ),
    "z_image_pixel": Spec(
        "ZImagePixelSpace",
        _Z_IMAGE
        | {
            "image_model": "zimage_pixel",
            "in_channels": 3,
            "patch_size": 4,
            "decoder_hidden_size": 64,
            "decoder_num_res_blocks": 1,
            "decoder_max_freqs": 4,
        },
        (1, 3, 16, 16),
    ),
    "pixeldit": Spec("PixelDiTT2I", _PIXELDIT, (1, 3, 16, 16), cfg=3.0),
    "pid": Spec(
        "PiD",
        _PIXELDIT
        | {"image_model": "pid", "lq_hidden_dim": 16, "lq_num_res_blocks": 1, "sr_scale": 1, "lq_interval": 2},
        (1, 3, 16, 16),
        Prompt(fixed={"lq_latent": gaussian(1, 16, 2, 2, seed=7), "degrade_sigma": torch.tensor([0.5])}),
    ),
    "cogvideox": Spec("CogVideoX_T2V", _COGVIDEOX | {"use_rotary_positional_embeddings": True}, _VIDEO, cfg=3.0),
    "cogvideox_2b": Spec("CogVideoX_T2V", _COGVIDEOX | {"num_attention_heads": 6}, _VIDEO, cfg=3.0),
    "cogvideox15_i2v": Spec(
        "CogVideoX_I2V",
        _COGVIDEOX
        | {
            "in_channels": 32,
            "patch_size_t": 2,
            "ofs_embed_dim": 32,
            "use_rotary_positional_embeddings": True,
        },
        (1, 16, 4, 8, 8),
        Prompt(fixed={"concat_latent_image": gaussian(1, 16, 4, 8, 8, seed=7)}),
        cfg=3.0,
    ),
    "ltx2": Spec("LTXAV", _LTX2, (1, 128, 2, 4, 4), Prompt(fixed={"frame_rate": 25}), cfg=3.0, sound=(1, 8, 5, 16)),
    # Their text comes as wide as picture and sound together.
    "ltx23": Spec("LTXAV", _LTX23, (1, 128, 2, 4, 4), _LTX23_PROMPT, cfg=3.0, sound=(1, 8, 5, 16)),
    "ltx25": Spec("LTXAV", _LTX25, (1, 128, 2, 4, 4), _LTX23_PROMPT, cfg=3.0, sound=(1, 8, 5, 16)),
    "wan21_flow_rvs": Spec("WAN21_FlowRVS", _WAN | {"model_type": "flow_rvs"}, _VIDEO),
    "wan21_scail": Spec(
        "WAN21_SCAIL", _WAN | {"model_type": "scail", "in_dim": 20}, _VIDEO, Prompt(fixed=_SCAIL), cfg=5.0
    ),
    "wan21_scail2": Spec(
        "WAN21_SCAIL2",
        _WAN | {"model_type": "scail2", "in_dim": 20},
        _VIDEO,
        Prompt(
            fixed=_SCAIL
            | {
                "driving_mask_28ch": gaussian(1, 3, 28, 4, 4, seed=9),
                "ref_mask_28ch": gaussian(1, 4, 28, 8, 8, seed=10),
            }
        ),
        cfg=5.0,
    ),
    "wan22_wandancer": Spec(
        "WAN22_WanDancer",
        _WAN | {"model_type": "wandancer", "in_dim": 36, "audio_inject_layers": [0, 2]},
        _VIDEO,
        Prompt(
            fixed={
                "audio_embed": gaussian(1, 9, 35, seed=7),
                "clip_vision_output_ref": SimpleNamespace(penultimate_hidden_states=gaussian(1, 257, 1280, seed=8)),
            }
        ),
        cfg=5.0,
    ),
    "wan_animate2": Spec(
        "WAN_Animate2",
        _WAN | {"model_type": "animate2", "in_dim": 36},
        _VIDEO,
        Prompt(fixed={"pose_video_latent": gaussian(1, 16, 2, 8, 8, seed=7)}),
        cfg=5.0,
    ),
    "wan_animate2_no_pose": Spec("WAN_Animate2", _WAN | {"model_type": "animate2", "in_dim": 36}, _VIDEO, cfg=5.0),
    "ace_step15": Spec(
        "ACEStep15",
        {
            "audio_model": "ace1.5",
            "hidden_size": 64,
            "text_hidden_dim": WIDTH,
            "num_dit_layers": 3,
            "num_lyric_layers": 1,
            "num_timbre_layers": 1,
            "num_tokenizer_layers": 1,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "encoder_hidden_size": 64,
            "encoder_intermediate_size": 128,
            "encoder_num_heads": 4,
            "fsq_dim": 64,
        },
        (1, 64, 20),
        Prompt(random={"conditioning_lyrics": (1, 5, WIDTH)}),
        cfg=3.0,
    ),
    "minimax_music": Spec(
        "MiniMaxMusic3",
        {"audio_model": "minimax_music3"},
        (1, 128, 24),
        Prompt((1, 6, 8 * 4096), fixed={"conditioning_scale": torch.ones(1, 1, 1)}),
        cfg=3.0,
    ),
    "seedvr2": Spec(
        "SeedVR2",
        {
            "image_model": "seedvr2",
            "norm_eps": 1e-5,
            "num_layers": 4,
            "mlp_type": "swiglu",
            "vid_dim": 64,
            "txt_in_dim": WIDTH,
            "heads": 2,
            "head_dim": 32,
            "rope_dim": 30,
            "mm_layers": 2,
            "expand_ratio": 2,
        },
        _VIDEO,
        Prompt(fixed={"condition": gaussian(1, 17, 3, 8, 8, seed=7)}),
    ),
}
