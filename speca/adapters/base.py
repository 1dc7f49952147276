"""What an architecture must state, and the work that follows from it.

An architecture is data: where its blocks are and which tensors they carry from one to the next. A *carried* tensor
is a parameter of the block's forward that the block also returns; a skipped block returns them untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from ..history import Tensors


class NotThisArchitectureError(Exception):
    """A network does not have what an architecture states. The message says what is missing."""


@dataclass(frozen=True)
class BlockList:
    """Equal blocks that run one after the other.

    path: attribute of the network, dotted, naming an `nn.ModuleList` or `nn.ModuleDict`.
    carried: parameters of the block's forward that it returns, in the order in which it returns them.
    also_needed: further parameters of the *verification* block that depend on skipped blocks; forecast with the rest.
    returns_tuple: whether one carried tensor comes back bare or in a tuple; with more it is always a tuple.
    """

    path: str
    carried: tuple[str, ...]
    also_needed: tuple[str, ...] = ()
    returns_tuple: bool = False

    def blocks_of(self, network: nn.Module) -> list[nn.Module]:
        try:
            found = network.get_submodule(self.path)
        except AttributeError:
            return []
        return list(found.values()) if isinstance(found, nn.ModuleDict) else list(found.children())

    def untouched(self, block: nn.Module) -> Callable[..., Any]:
        """A forward for `block` that computes nothing and returns the carried tensors as they came."""
        positions = [(name, position_of(block, name)) for name in self.carried]
        bare = len(positions) == 1 and not self.returns_tuple

        def forward(*args: Any, **kwargs: Any) -> Any:
            carried = tuple(kwargs[name] if name in kwargs else args[i] for name, i in positions)
            return carried[0] if bare else carried

        return forward

    def needed(self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensors:
        """The tensors that enter `block` and depend on the blocks before it."""
        return tuple(
            kwargs[name] if name in kwargs else args[position_of(block, name)]
            for name in (*self.carried, *self.also_needed)
        )

    def with_needed(
        self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], values: Tensors
    ) -> tuple[list[Any], dict[str, Any]]:
        """The block's arguments with the needed tensors replaced by `values`."""
        new_args, new_kwargs = list(args), dict(kwargs)
        for name, value in zip((*self.carried, *self.also_needed), values, strict=True):
            if name in new_kwargs:
                new_kwargs[name] = value
            else:
                new_args[position_of(block, name)] = value
        return new_args, new_kwargs


@dataclass(frozen=True)
class Architecture:
    """One family of networks that SpeCa knows.

    name: as reports have it. title: as people call it. networks: class names of `BaseModel.diffusion_model`.
    stages: the lists of blocks in the order in which they run; an empty list is passed over.
    also_skipped: further blocks that need not run when the blocks of the stages are skipped.
    models: what people run with it, for the README's table.
    """

    name: str
    title: str
    networks: tuple[str, ...]
    stages: tuple[BlockList, ...]
    also_skipped: tuple[BlockList, ...] = ()
    models: tuple[str, ...] = ()
    experimental: bool = False


@dataclass(frozen=True)
class Anatomy:
    """An architecture found in one network: the blocks to skip and the one block that verifies."""

    architecture: Architecture
    skipped: tuple[tuple[BlockList, nn.Module], ...]
    verification_stage: BlockList
    verification_block: nn.Module

    @property
    def n_blocks(self) -> int:
        return len(self.skipped) + 1


def find_anatomy(architecture: Architecture, network: nn.Module) -> Anatomy:
    """Locate the architecture's blocks in `network`. Raises `NotThisArchitectureError` saying what is missing."""
    found = [(stage, block) for stage in architecture.stages for block in stage.blocks_of(network)]
    if len(found) < 2:
        paths = " and ".join(stage.path for stage in architecture.stages)
        raise NotThisArchitectureError(f"{type(network).__name__} has fewer than two blocks in {paths}")
    helpers = [(stage, block) for stage in architecture.also_skipped for block in stage.blocks_of(network)]
    for stage, block in (*found, *helpers):
        for name in (*stage.carried, *stage.also_needed):
            position_of(block, name)
    stage, block = found[-1]
    return Anatomy(architecture, (*found[:-1], *helpers), stage, block)


def position_of(block: nn.Module, name: str) -> int:
    """The position of parameter `name` in the block's forward, self not counted."""
    positions = _positions(type(block).forward)
    if name not in positions:
        raise NotThisArchitectureError(f"{type(block).__name__}.forward has no parameter {name!r}")
    return positions[name]


@lru_cache(maxsize=256)
def _positions(forward: Callable[..., Any]) -> dict[str, int]:
    parameters = list(inspect.signature(forward).parameters)[1:]  # without self
    return {name: i for i, name in enumerate(parameters)}


def is_batched(tensors: Sequence[Any], rows: int) -> bool:
    return all(isinstance(t, Tensor) and t.ndim > 0 and t.shape[0] == rows for t in tensors)
