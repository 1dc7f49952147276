"""Several processes that run one network together: each must take the same decision, or they wait for one another.

Ranks that hold a part of the tokens each (sequence-parallel: raylight with xDiT, which exchanges the forwards of a
network and of its blocks) meet in every attention; ranks that hold a part of the weights each (FSDP) meet in every
block. Where one skips blocks and another computes, both hang. So what decisions rest on is the worst of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

# Modules with what raylight puts in the place of a network's own code: it shares tokens or conditionings out, and keeps
# nothing from one call to the next (raylight/diffusion_models/*/xdit_context_parallel.py, xdit_cfg_parallel.py).
SHARING_OUT = ("raylight.diffusion_models.", ".xdit_")


def several() -> bool:
    """Whether this process is one of several that sample together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def worst(values: Sequence[float], device: torch.device) -> list[float]:
    """The largest of all ranks at each place; every rank must ask, with as many values. What is not a number is
    infinite: a maximum may lose it. With one process, `values` as they are.

    device: one that the process group can reduce on, so the network's.
    """
    if not several():
        return list(values)
    together = torch.tensor(values, dtype=torch.float32).nan_to_num(nan=torch.inf, posinf=torch.inf).to(device)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    listed: list[float] = together.tolist()
    return listed


def shares_out(module: str) -> bool:
    """Whether code of this module in the place of a network's own only shares its work out over ranks."""
    package, kind = SHARING_OUT
    return several() and module.startswith(package) and kind in module
