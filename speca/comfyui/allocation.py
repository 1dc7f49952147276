"""ComfyUI's recorder of allocations, which is off while SpeCa samples.

From 0.34 on, on CUDA, some networks record what is allocated in their block loop (`malloc_graph_begin` and `_end` of
comfy/model_prefetch.py) and get the same memory again in the next call. A tensor that is made in there and kept, as
anchors are, ends the process; a call that skips blocks allocates otherwise. The recorder can be paused
(`pause_malloc_graph`), but other packs report that this is not enough in 0.34. ComfyUI reads its switches anew in each
call, so they are set for the length of a run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.cli_args
import torch

SWITCH = "disable_comfy_compiler"
# A graph of a block that is captured whole is replayed without its forward, so nothing can be exchanged in it.
SWITCHES = (SWITCH, "disable_cuda_graphs")

NO_SWITCH = (
    "this ComfyUI records the allocations of a network's blocks and has no switch for it; "
    "what SpeCa keeps must not be recorded, so the run is computed natively"
)


def reason_to_stay_native(device: torch.device) -> str | None:
    """A sentence, where allocations are recorded and nothing can be done about it."""
    return NO_SWITCH if _records(device) and not hasattr(comfy.cli_args.args, SWITCH) else None


def _records(device: torch.device) -> bool:
    prefetch = sys.modules.get("comfy.model_prefetch")
    if not hasattr(prefetch, "malloc_graph_begin"):
        return False
    enabled = getattr(prefetch, "malloc_graph_enabled", None)
    return enabled is None or bool(enabled(device))


class _Unrecorded:
    """Runs may lie within one another, or beside: the last one to end puts the switches back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._before: dict[str, Any] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        args = comfy.cli_args.args
        with self._lock:
            self._runs += 1
            if self._runs == 1:
                self._before = {name: getattr(args, name) for name in SWITCHES if hasattr(args, name)}
                self._set(dict.fromkeys(self._before, True))
        try:
            yield
        finally:
            with self._lock:
                self._runs -= 1
                if self._runs == 0:
                    self._set(self._before)

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(comfy.cli_args.args, name, value)


unrecorded = _Unrecorded()
