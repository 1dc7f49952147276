"""Tiny DiTs for the tests: random weights, in the authors' layout and in diffusers'."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from speca.dit.checkpoint import DiTConfig, parse_checkpoint
from speca.dit.comfy_model import patcher_from_checkpoint
from speca.dit.model import DiT, position_embedding

TINY = DiTConfig(
    input_size=8,
    patch_size=2,
    in_channels=4,
    hidden_size=64,
    depth=3,
    num_heads=4,
    mlp_ratio=4.0,
    num_classes=10,
    learn_sigma=True,
)


def randomized(network: torch.nn.Module, seed: int = 0) -> Any:
    """Every parameter random, none small: the zeros that adaLN-Zero begins with would hide most mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return network.eval().requires_grad_(False)


def network(config: DiTConfig = TINY, seed: int = 0) -> DiT:
    return randomized(DiT(**asdict(config)), seed)


def authors_table(config: DiTConfig) -> torch.Tensor:
    side = (config.input_size or 0) // config.patch_size
    return position_embedding(config.hidden_size, side, side, side, torch.device("cpu"), torch.float32)


def authors_state_dict(config: DiTConfig = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """As the authors' training script saves it: with the position table."""
    return {"pos_embed": authors_table(config), **network(config, seed).state_dict()}


def header(config: DiTConfig = TINY) -> dict[str, str]:
    """What a safetensors header must say about a DiT whose width is none of the paper's."""
    return {"num_heads": str(config.num_heads)}


def patcher(config: DiTConfig = TINY, seed: int = 0, dtype: torch.dtype | None = torch.float32, **metadata: str) -> Any:
    """A tiny DiT as the loader makes it, without the file."""
    checkpoint = parse_checkpoint(authors_state_dict(config, seed), {**header(config), **metadata}, "tiny.safetensors")
    return patcher_from_checkpoint(checkpoint, "tiny.safetensors", dtype)


def diffusers_network(config: DiTConfig = TINY, seed: int = 0) -> Any:
    """diffusers' network of the same shape. Its blocks hold one copy each of the embedders; these are made equal.

    Two of its constants are not the authors' and are set to theirs: `norm_eps`, and the timestep's frequencies, which
    it spaces over 127 intervals where the authors, whose weights it runs, have 128.
    """
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=config.in_channels,
        out_channels=config.in_channels * (2 if config.learn_sigma else 1),
        num_layers=config.depth,
        sample_size=config.input_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=1e-6,
    )
    randomized(theirs, seed)
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return theirs
