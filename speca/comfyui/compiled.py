"""Networks compiled as a whole or block by block (`torch.compile`): what can skip, and how blocks are watched."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import nn

from ..adapters.base import COMPILED_IN_PLACE, BlockList, exchanged_forward, native_of, uncompiled
from . import KEY

Keep = Callable[[tuple[Any, ...], dict[str, Any]], None]


@dataclass(frozen=True)
class Forwards:
    """How a network is run in full, and how with skipped blocks. They differ for a network compiled as a whole
    (TorchCompileModel): a compiled graph cannot skip, so speculated calls, which run one block, are not compiled."""

    full: Callable[..., Any]
    skipping: Callable[..., Any]
    compiled: bool

    @classmethod
    def of(cls, network: nn.Module) -> Forwards:
        plain = uncompiled(network)
        in_place = COMPILED_IN_PLACE in vars(network)
        return cls(native_of(network), plain.forward, in_place or plain is not network)


def order_wrappers(options: dict[str, Any]) -> None:
    """Of this run's wrappers put SpeCa's APPLY_MODEL last, inside those that exchange the network (TorchCompileModel),
    and its PREDICT_NOISE first, outside those that may answer in the place of all that is inside; in whatever order the
    nodes were connected."""
    wrappers = options.get("wrappers", {})
    around_network, around_all = wrappers.get(WrappersMP.APPLY_MODEL, {}), wrappers.get(WrappersMP.PREDICT_NOISE, {})
    if KEY in around_network:
        around_network[KEY] = around_network.pop(KEY)
    for key in [key for key in around_all if key != KEY and KEY in around_all]:
        around_all[key] = around_all.pop(key)


class Tap:
    """Shows a block's inputs to `keep` before the block runs.

    A compiled graph is kept for later calls, and with it what it was traced with. For such a block the tap is one
    object for good, run outside the graph: a later call finds it there with that call's `keep`, or with none. Should a
    graph be reused that was traced without it, nothing is kept, and without anchors every call is computed in full.
    """

    def __init__(self, stage: BlockList, block: nn.Module) -> None:
        self.native: Callable[..., Any] = functools.partial(getattr(type(uncompiled(block)), stage.method), block)
        self.keep: Keep | None = None
        self.outside_graphs = torch.compiler.disable(self.__call__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.keep is not None:
            self.keep(args, kwargs)
        return self.native(*args, **kwargs)


@contextmanager
def tapped(stage: BlockList, block: nn.Module, keep: Keep, compiled: bool) -> Iterator[None]:
    tap = block.__dict__.setdefault(f"_{KEY}_tap", Tap(stage, block)) if compiled else Tap(stage, block)
    unchanged = tap.native
    tap.native, tap.keep = stage.native(block), keep
    try:
        with exchanged_forward(block, tap.outside_graphs if compiled else tap, stage.method):
            yield
    finally:
        tap.native, tap.keep = unchanged, None
