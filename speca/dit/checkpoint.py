"""DiT weights on disk: which network they belong to, and its parameters under the authors' names.

Read are the authors' checkpoints (facebookresearch/DiT), the state dict of diffusers' `DiTTransformer2DModel`, and what
ComfyUI's own nodes save of a loaded DiT. Code inside a pickled file is never run.

What the tensors do not say can stand in a safetensors header, each key as text or together as a JSON object under
"config": `num_heads`, `input_size`, and `class_names`, a JSON list in the order of the labels. Where ComfyUI saves a
model there is no header to write to; there the JSON object is a tensor of bytes, `NOTES_TENSOR`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.utils
import numpy as np
import safetensors
import torch

from .model import TIMESTEP_FREQUENCIES, DiT, position_embedding

StateDict = dict[str, torch.Tensor]

AUTHORS_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Hidden size -> heads of the paper's S, B, L and XL (table 1)."""

USUAL_HEAD_DIM = 64

# Where training scripts put the weights, best first: the averaged ones are those to sample with.
NESTED_UNDER = ("ema", "model_ema", "ema_model", "state_dict", "model", "module")

# ComfyUI's "ModelSave" writes the first; the others are left by DistributedDataParallel and torch.compile.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "_orig_mod.")

POSITION_TABLE = "pos_embed"
NOTES_TENSOR = "dit_config"

# Stored tables went through half precision or less; the sines and cosines themselves are up to 1.
POSITION_TABLE_TOLERANCE = 0.05

TELLTALE = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "t_embedder.mlp.2.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
    "final_layer.adaLN_modulation.1.weight",
)
"""Without each of these, a state dict (under the authors' names) is no DiT's."""

# diffusers -> the authors, outside the blocks. Its timestep and label embedders are copied into every block.
_DIFFUSERS_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_DIFFUSERS_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
_DIFFUSERS_BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_DIFFUSERS_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")

_EXAMPLES_SHOWN = 4


class CheckpointError(ValueError):
    """A file cannot be used as a DiT. The message names what was found and what was missing."""


@dataclass(frozen=True)
class DiTConfig:
    """What `DiT` is built from; the fields are its arguments of the same names. Sizes are in latent pixels."""

    input_size: int | None
    patch_size: int
    in_channels: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: float
    num_classes: int
    learn_sigma: bool

    @property
    def name(self) -> str:
        """The paper's name of this size, such as "DiT-XL/2", or a description of it."""
        paper = {(12, 384, 6): "S", (12, 768, 12): "B", (24, 1024, 16): "L", (28, 1152, 16): "XL"}
        size = paper.get((self.depth, self.hidden_size, self.num_heads))
        return f"DiT-{size or f'{self.depth}x{self.hidden_size}'}/{self.patch_size}"


@dataclass(frozen=True)
class DiTCheckpoint:
    """A DiT's parameters under the authors' names, the network they fit, and its class names if the file has them."""

    state_dict: StateDict
    config: DiTConfig
    class_names: tuple[str, ...] | None


def read_checkpoint(path: str | Path) -> DiTCheckpoint:
    """Read a DiT from a safetensors file or a PyTorch file (.pt, .pth, .bin, .ckpt).

    Raises:
        CheckpointError: when the file cannot be read, holds pickled code, or is not a DiT.
    """
    path = Path(path)
    state_dict, metadata = _read_file(path)
    return parse_checkpoint(state_dict, metadata, path.name)


def parse_checkpoint(state_dict: Mapping[str, Any], metadata: Mapping[str, str] | None, name: str) -> DiTCheckpoint:
    """A DiT from what a file holds: its tensors, perhaps nested or under other names, and its header.

    Args:
        state_dict: as read from the file.
        metadata: the safetensors header; None for other files.
        name: the file's name, for messages.

    Raises:
        CheckpointError: when it is not a DiT.
    """
    found = _strip_prefix(_unnest(state_dict, name))
    weights = from_diffusers(found, name) if _looks_like_diffusers(found) else dict(found)
    missing = [key for key in TELLTALE if key not in weights]
    if missing:
        raise CheckpointError(_not_a_dit(name, found, missing))
    table = weights.pop(POSITION_TABLE, None)
    notes = {**_unpack_notes(weights.pop(NOTES_TENSOR, None)), **_notes(metadata)}
    config = _infer_config(weights, table, notes, name)
    _check_shapes(weights, config, name)
    _check_position_table(table, config, name)
    return DiTCheckpoint(weights, config, _class_names(notes, config, name))


def from_diffusers(state_dict: Mapping[str, torch.Tensor], name: str = "this file") -> StateDict:
    """The parameters of diffusers' `DiTTransformer2DModel` under the authors' names.

    Raises:
        CheckpointError: when the embedders, which diffusers stores once for each block, differ between blocks.
    """
    out: StateDict = {}
    projections: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state_dict.items():
        module, _, kind = key.rpartition(".")
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
        if match is None:
            outer = _DIFFUSERS_OUTER.get(module)
            out[POSITION_TABLE if key == "pos_embed.pos_embed" else f"{outer or module}.{kind}"] = tensor
            continue
        block, inner = match.groups()
        if inner in _DIFFUSERS_EMBEDDERS:
            target = f"{_DIFFUSERS_EMBEDDERS[inner]}.{kind}"
            if not torch.equal(out.setdefault(target, tensor), tensor):
                raise CheckpointError(
                    f"{name}: each block has its own '{inner}', and they differ. A DiT embeds timestep and class once "
                    "for all blocks; convert the file with the embedders of one block."
                )
        elif inner in _DIFFUSERS_QKV:
            projections.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[inner] = tensor
        else:
            out[f"blocks.{block}.{_DIFFUSERS_BLOCK.get(inner, inner)}.{kind}"] = tensor
    for target, parts in projections.items():
        if len(parts) == len(_DIFFUSERS_QKV):
            out[target] = torch.cat([parts[part] for part in _DIFFUSERS_QKV])
    return out


def heads_for(hidden_size: int) -> int:
    """The number of attention heads, which no tensor's shape shows, for a file that does not state it.

    The paper's sizes have the paper's heads. Any other width gets heads of 64 channels; where 64 does not divide it, of
    the largest divisor below 64.
    """
    if hidden_size in AUTHORS_HEADS:
        return AUTHORS_HEADS[hidden_size]
    head_dim = max(size for size in range(1, USUAL_HEAD_DIM + 1) if hidden_size % size == 0)
    return hidden_size // head_dim


def _read_file(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str] | None]:
    if path.suffix.lower() in (".safetensors", ".sft"):
        try:
            return comfy.utils.load_torch_file(str(path), return_metadata=True)
        except (safetensors.SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path.name} cannot be read as a safetensors file: {error}") from error
    # The authors' training script stores its arguments beside the weights. A Namespace only holds values, so naming it
    # to the restricted unpickler runs no code.
    allowed = getattr(torch.serialization, "safe_globals", lambda _: nullcontext())([argparse.Namespace])
    try:
        with allowed:
            mmap = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap), None
    except pickle.UnpicklingError as error:
        # torch's own message explains how to run the code after all; nobody should read that here.
        raise CheckpointError(_refused(path.name, str(error))) from None
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path.name} cannot be read as a PyTorch file of weights: {error}") from error


def _refused(name: str, reason: str) -> str:
    unsafe = re.search(r"GLOBAL ([\w.]+)", reason)
    if unsafe is None:
        detail = reason.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0] or "it is empty or damaged"
        return f"{name} cannot be read as a PyTorch file of weights: {detail}"
    return (
        f"{name} was refused: loading it would call Python's '{unsafe[1]}', which a file of weights has no need of and "
        "which could do anything to your computer. Nothing was run. Get the weights as a safetensors file, or as a .pt "
        "file of tensors only."
    )


def _unnest(state_dict: Any, name: str) -> dict[str, torch.Tensor]:
    """The innermost dict of tensors, following the names under which training scripts keep weights."""
    while isinstance(state_dict, Mapping):
        tensors = {key: value for key, value in state_dict.items() if isinstance(value, torch.Tensor)}
        if tensors:
            return tensors
        inner = next((key for key in NESTED_UNDER if isinstance(state_dict.get(key), Mapping)), None)
        if inner is None:
            break
        state_dict = state_dict[inner]
    what = f"a dict of {_shown(state_dict)}" if isinstance(state_dict, Mapping) else f"a {type(state_dict).__name__}"
    raise CheckpointError(
        f"{name} is not a DiT: it holds {what}, but no tensors, neither directly nor under "
        f"{_shown(NESTED_UNDER, len(NESTED_UNDER))}."
    )


def _strip_prefix(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The part of a state dict that is the network, without what wrappers put before each name."""
    for prefix in PREFIXES:
        stripped = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        state_dict = stripped or state_dict
    return dict(state_dict)


def _looks_like_diffusers(state_dict: Iterable[str]) -> bool:
    return any(key.startswith("transformer_blocks.") for key in state_dict)


def _notes(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What a safetensors header says about the network: the JSON object "config", then single keys."""
    header = dict(metadata or {})
    notes: dict[str, Any] = {}
    for key, text in [("config", header.pop("config", "{}")), *header.items()]:
        try:
            value = json.loads(text)
        except (TypeError, ValueError):
            continue
        notes.update(value if key == "config" and isinstance(value, dict) else {key: value})
    return notes


def pack_notes(config: DiTConfig, class_names: tuple[str, ...] | None) -> torch.Tensor:
    """What tensors' shapes do not say about a DiT, as a tensor of bytes: (N,) uint8, JSON in UTF-8."""
    notes: dict[str, Any] = {"num_heads": config.num_heads, "input_size": config.input_size}
    if class_names is not None:
        notes["class_names"] = class_names
    return torch.from_numpy(np.frombuffer(json.dumps(notes).encode(), np.uint8).copy())


def _unpack_notes(packed: torch.Tensor | None) -> dict[str, Any]:
    if packed is None or packed.dtype != torch.uint8:
        return {}
    try:
        notes = json.loads(packed.numpy(force=True).tobytes())
    except ValueError:
        return {}
    return notes if isinstance(notes, dict) else {}


def _noted_int(notes: Mapping[str, Any], *keys: str) -> int | None:
    value = next((notes[key] for key in keys if key in notes), None)
    return value if isinstance(value, int) and value > 0 else None


def _infer_config(
    weights: Mapping[str, torch.Tensor], table: torch.Tensor | None, notes: Mapping[str, Any], name: str
) -> DiTConfig:
    patches = weights["x_embedder.proj.weight"]
    frequencies = weights["t_embedder.mlp.0.weight"]
    if patches.ndim != 4 or patches.shape[2] != patches.shape[3]:
        raise CheckpointError(
            f"{name} is not a DiT: 'x_embedder.proj.weight' has the shape {_shape(patches)}; "
            "a DiT's is (hidden size, channels, patch, patch)."
        )
    if frequencies.ndim != 2 or frequencies.shape[1] != TIMESTEP_FREQUENCIES:
        raise CheckpointError(
            f"{name} is not a DiT: 't_embedder.mlp.0.weight' has the shape {_shape(frequencies)}; "
            f"a DiT's is (hidden size, {TIMESTEP_FREQUENCIES})."
        )
    hidden_size, in_channels, patch_size, _ = patches.shape
    out_values = weights["final_layer.linear.weight"].shape[0]
    out_channels = out_values / patch_size**2
    if out_channels not in (in_channels, 2 * in_channels):
        raise CheckpointError(
            f"{name} is not a DiT: 'final_layer.linear.weight' puts out {out_values} values for a patch of "
            f"{patch_size} x {patch_size}; for {in_channels} channels in a DiT has "
            f"{in_channels * patch_size**2}, or twice that where it learns the variance."
        )
    num_heads = _noted_int(notes, "num_heads", "heads", "num_attention_heads")
    if num_heads is None:
        num_heads = heads_for(hidden_size)
        if hidden_size not in AUTHORS_HEADS:
            logging.warning(
                f"{name} does not say how many attention heads it has; taking {num_heads} of "
                f"{hidden_size // num_heads} channels. If pictures are noise, put 'num_heads' into its header."
            )
    elif hidden_size % num_heads:
        raise CheckpointError(f"{name} states {num_heads} heads, which do not divide its hidden size of {hidden_size}.")
    side = math.isqrt(table.shape[1]) if table is not None and table.ndim == 3 else 0
    return DiTConfig(
        input_size=side * patch_size or _noted_int(notes, "input_size", "sample_size"),
        patch_size=patch_size,
        in_channels=in_channels,
        hidden_size=hidden_size,
        depth=1 + max(int(match[1]) for match in map(re.compile(r"blocks\.(\d+)\.").match, weights) if match),
        num_heads=num_heads,
        mlp_ratio=weights["blocks.0.mlp.fc1.weight"].shape[0] / hidden_size,
        num_classes=weights["y_embedder.embedding_table.weight"].shape[0] - 1,
        learn_sigma=out_channels == 2 * in_channels,
    )


def _check_shapes(weights: Mapping[str, torch.Tensor], config: DiTConfig, name: str) -> None:
    # Plain torch layers: newer ComfyUI's own may not have made their parameters yet.
    network = DiT(**asdict(config), device="meta", operations=torch.nn)
    expected = {key: value.shape for key, value in network.state_dict().items()}
    missing = [key for key in expected if key not in weights]
    surplus = [key for key in weights if key not in expected]
    wrong = [
        f"'{key}' is {_shape(weights[key])} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in weights and weights[key].shape != shape
    ]
    problems = [
        f"missing: {_shown(missing)}" if missing else "",
        f"not part of a DiT: {_shown(surplus)}" if surplus else "",
        f"of another shape: {'; '.join(wrong[:_EXAMPLES_SHOWN])}" if wrong else "",
    ]
    if any(problems):
        raise CheckpointError(
            f"{name} begins like a {config.name} with {config.depth} blocks of width {config.hidden_size}, but is "
            f"damaged or a different network; {'; '.join(filter(None, problems))}."
        )


def _check_position_table(table: torch.Tensor | None, config: DiTConfig, name: str) -> None:
    """A DiT's table is fixed, so it is computed, not loaded; a trained one would be lost without a word."""
    if table is None:
        return
    side = (config.input_size or 0) // config.patch_size
    fixed = position_embedding(config.hidden_size, side, side, side, torch.device("cpu"), torch.float32)
    if table.shape != fixed.shape or (table.float() - fixed).abs().max() > POSITION_TABLE_TOLERANCE:
        raise CheckpointError(
            f"{name}: its position table '{POSITION_TABLE}' {_shape(table)} is not a DiT's, which is fixed: sines and "
            "cosines over a square grid. The network is a variant of DiT that cannot be run here."
        )


def _class_names(notes: Mapping[str, Any], config: DiTConfig, name: str) -> tuple[str, ...] | None:
    names = notes.get("class_names")
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != config.num_classes:
        logging.warning(f"{name}: its class names are ignored; there should be a list of {config.num_classes}.")
        return None
    return tuple(str(entry) for entry in names)


def _not_a_dit(name: str, found: Mapping[str, torch.Tensor], missing: list[str]) -> str:
    return (
        f"{name} is not a DiT: its {len(found)} tensors ({_shown(_spread(list(found)))}) lack {_shown(missing)}. "
        "This loader reads class-conditional DiT checkpoints, with the names of their authors or of diffusers; for "
        "other models use 'Load Diffusion Model' or 'Load Checkpoint'."
    )


def _spread(keys: list[str]) -> list[str]:
    """A few keys of different modules, which tell more than the first few."""
    return list({key.split(".")[0]: key for key in reversed(keys)}.values())[::-1]


def _shown(keys: Iterable[Any], count: int = _EXAMPLES_SHOWN) -> str:
    keys = [f"'{key}'" for key in keys]
    more = f" and {len(keys) - count} more" if len(keys) > count else ""
    return (", ".join(keys[:count]) or "nothing") + more


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
