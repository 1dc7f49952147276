"""One rank of a tiny FLUX whose tokens are split between processes, as a program: writes what it decided.

    python split_tokens.py RANK RANKS RENDEZVOUS_FILE RESULT_FILE SETTINGS

As raylight does with xDiT: the network's forward takes this rank's part of text and picture, attention gathers keys and
values of all ranks, and the output is gathered at the end. With "whole": false in the settings it is not, nor is the
latent whole: each rank samples its own half of the picture, and is wrong in its own way. SETTINGS is a list, of one run
each.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import torch.distributed as dist
from torch import Tensor

AS_RAYLIGHT = "raylight.diffusion_models.flux.xdit_context_parallel"


def gathered(tensor: Tensor, dim: int) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim)


def part(tensor: Tensor, dim: int = 1) -> Tensor:
    return tensor.chunk(dist.get_world_size(), dim)[dist.get_rank()]


@contextmanager
def split_tokens(network: Any, whole: bool) -> Iterator[None]:
    import comfy.ldm.flux.layers as layers
    from comfy.ldm.flux.math import apply_rope

    native, attention = network.forward_orig, layers.attention

    def of_all_ranks(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Queries of this rank, keys and values of all: (B, heads, tokens, D) each."""
        q, k = apply_rope(q, k, pe)
        return attention(q, gathered(k, 2), gathered(v, 2), None, *args, **kwargs)

    def forward(img: Tensor, img_ids: Tensor, txt: Tensor, txt_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        even = txt.shape[1] // 2 * 2  # raylight pads instead
        txt, txt_ids = txt[:, :even], txt_ids[:, :even]
        if whole:
            img, img_ids = part(img), part(img_ids)
        else:  # the rows of the picture below those of the ranks before
            img_ids = img_ids.clone()
            img_ids[..., 1] += dist.get_rank() * (img_ids[..., 1].max() + 1)
        output = native(img, img_ids, part(txt), part(txt_ids), *args, **kwargs)
        return gathered(output, 1) if whole else output

    forward.__module__ = AS_RAYLIGHT if dist.get_world_size() > 1 else type(network).__module__
    network.forward_orig, layers.attention = forward, of_all_ranks
    try:
        yield
    finally:
        layers.attention = attention


def run(whole: bool, speca: bool = True, **settings: Any) -> dict[str, Any]:
    import tiny_models
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    tiny = tiny_models.build("flux")
    model = attach(tiny.model_patcher, SpeCaConfig(**settings)) if speca else tiny.model_patcher
    latent = tiny.latent if whole else {"samples": part(tiny.latent["samples"], 2)}
    with split_tokens(tiny.model_patcher.model.diffusion_model, whole):
        seed = 42 if whole else 42 + dist.get_rank()
        samples = tiny_models.ksample(model, latent, *tiny[2:], steps=10, seed=seed)
    record = attachment_of(model).run_of() if speca else None
    return {
        "native": record and record.header.native,
        "rows": record and [[row.to_json() for row in call.rows] for call in record.calls],
        "samples": samples.flatten().tolist(),
    }


def main() -> None:
    rank, ranks, rendezvous, result, settings = sys.argv[1:]
    dist.init_process_group(
        "gloo",
        init_method=Path(rendezvous).as_uri(),
        rank=int(rank),
        world_size=int(ranks),
        timeout=datetime.timedelta(seconds=60),
    )
    import comfy_env

    comfy_env.prepare()
    torch.set_num_threads(1)
    Path(result).write_text(json.dumps([run(**wanted) for wanted in json.loads(settings)]))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
