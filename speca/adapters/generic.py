"""Networks that no adapter names: found by their structure, and trusted only after a trial.

Structure proposes: one or two lists of equal blocks that hold most of the network's parameters. A watched call
shows what the blocks carry: each runs once, in order, and each tensor that a block returns *is* the tensor that the
next one receives. Then the trial decides: a call with all blocks but the last left out, and the last one given the very
features it had, must return what the full call returned. Whatever else depends on a skipped block (a long skip,
state kept aside, a head that reads an early layer) fails it, and the network runs natively. So a network is not
trusted for its names or shapes, but for having been seen to work.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..call import ForecastImpossibleError, Network, Tensors
from .base import (
    Anatomy,
    Architecture,
    BlockList,
    NotThisArchitectureError,
    Parameter,
    exchanged_forward,
    parameters_of,
    uncompiled,
)

LEAST_BLOCKS = 4
LEAST_SHARE = 0.5  # of the network's parameters, in the blocks
LEAST_SHARE_OF_SECOND = 0.1  # a shorter list (refiners of the text) runs on every call instead
TOLERANCE = 1e-3  # relative L2 of the trial's output: the same arithmetic on the same numbers


def discover(network: nn.Module) -> Anatomy:
    """The anatomy that the structure proposes, still to be proved. Raises `NotThisArchitectureError` if there is none.

    Equal means the same class and the same parameters: the blocks of a U-Net, which change their width, are not.
    """
    total = sum(p.numel() for p in network.parameters())
    lists = sorted(_lists_of_equal_blocks(network), key=lambda found: -found.share(total))
    chosen = lists[:1] + [second for second in lists[1:2] if second.share(total) >= LEAST_SHARE_OF_SECOND]
    blocks = [(found.stage, block) for found in chosen for block in found.blocks]
    if len(blocks) < LEAST_BLOCKS or sum(found.share(total) for found in chosen) < LEAST_SHARE:
        raise NotThisArchitectureError("its structure is not that of a transformer with equal blocks")
    architecture = Architecture(
        name="generic",
        title=type(network).__name__,
        networks=(type(network).__name__,),
        stages=tuple(found.stage for found in chosen),
        experimental=True,
    )
    stage, block = blocks[-1]
    return Anatomy(architecture, tuple(blocks[:-1]), stage, block)


@dataclass(frozen=True)
class _EqualBlocks:
    stage: BlockList
    blocks: list[nn.Module]

    def share(self, total: int) -> float:
        return sum(p.numel() for block in self.blocks for p in block.parameters()) / max(total, 1)


def _lists_of_equal_blocks(network: nn.Module) -> Iterator[_EqualBlocks]:
    """Lists with at least two equal blocks, none of them inside a block of another."""
    inside: set[nn.Module] = set()
    for path, module in network.named_modules():  # parents come before their children
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) or module in inside:
            continue
        stage = BlockList(path, carried=())
        blocks = stage.blocks_of(network)
        if len(blocks) >= 2 and len({_likeness(block) for block in blocks}) == 1:
            inside.update(child for block in blocks for child in block.modules())
            yield _EqualBlocks(stage, blocks)


def _likeness(block: nn.Module) -> tuple[Any, ...]:
    block = uncompiled(block)
    return (type(block), tuple((name, p.shape) for name, p in block.named_parameters()))


@dataclass(frozen=True)
class _Seen:
    """One call of one block: what it received, as parameter -> (shape, dtype), and what it returned."""

    received: dict[Parameter, tuple[torch.Size, torch.dtype]]
    returned: Any


class Watch:
    """Sees the blocks of an anatomy run, one network call long. Keeps one block's output at a time."""

    def __init__(self, proposed: Anatomy) -> None:
        self._proposed = proposed
        self._order: list[tuple[BlockList, nn.Module]] = []
        self._last: dict[str, _Seen] = {}
        self._carried: dict[str, set[tuple[Parameter, ...]]] = {}
        self._forms: dict[str, set[type]] = {}

    def note(self, stage: BlockList, block: nn.Module, arguments: dict[Parameter, Any], returned: Any) -> None:
        """`block` of `stage` was given `arguments` and returned `returned`."""
        before = self._last.get(stage.path)
        carried = self._carried.setdefault(stage.path, set())
        if before is not None:
            carried.add(_handed_on(before, arguments))
        self._forms.setdefault(stage.path, set()).add(type(returned))
        self._order.append((stage, block))
        shapes = {p: (v.shape, v.dtype) for p, v in arguments.items() if isinstance(v, Tensor)}
        self._last[stage.path] = _Seen(shapes, returned)

    def conclude(self) -> Anatomy:
        """The anatomy with the tensors that the blocks were seen to carry. Raises `NotThisArchitectureError`."""
        proposed = self._proposed
        blocks = [*proposed.skipped, (proposed.verification_stage, proposed.verification_block)]
        counts = Counter(id(block) for _, block in self._order)
        if any(counts[id(block)] != 1 for _, block in blocks):
            raise NotThisArchitectureError("not every block runs exactly once")
        paths = list(dict.fromkeys(stage.path for stage, _ in self._order))
        order = [paths.index(stage.path) for stage, _ in self._order]
        if order != sorted(order):
            raise NotThisArchitectureError("its lists of blocks do not run one after the other")
        stages = {stage.path: self._concluded(stage) for stage, _ in blocks}
        in_order = [(stages[stage.path], block) for stage, block in self._order]
        stage, block = in_order[-1]
        architecture = replace(proposed.architecture, stages=tuple(stages[path] for path in paths))
        return Anatomy(architecture, tuple(in_order[:-1]), stage, block)

    def _concluded(self, stage: BlockList) -> BlockList:
        carried, forms = self._carried[stage.path], self._forms[stage.path]
        if len(carried) != 1 or len(forms) != 1 or () in carried:
            raise NotThisArchitectureError("a block does not receive just what the one before it returned")
        (names,), (form,) = carried, forms
        return replace(stage, carried=names, returns_tuple=form is tuple)


def _handed_on(before: _Seen, arguments: dict[Parameter, Any]) -> tuple[Parameter, ...]:
    """The parameters that are given the very tensors which the block before returned, in the order of its returning.

    Empty unless all of them are, and each has the shape that it had in the block before.
    """
    returned = before.returned if isinstance(before.returned, tuple) else (before.returned,)
    names: list[Parameter] = []
    for tensor in returned:
        name = next((p for p, v in arguments.items() if v is tensor and p not in names), None)
        if name is None or not isinstance(tensor, Tensor):
            return ()
        if before.received.get(name) != (tensor.shape, tensor.dtype):
            return ()
        names.append(name)
    return tuple(names)


@contextmanager
def watched(proposed: Anatomy) -> Iterator[Watch]:
    """Inside, every call of the anatomy's blocks is noted, and computed as ever."""
    watch = Watch(proposed)

    def note(stage: BlockList, block: nn.Module, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = parameters_of(block, args, kwargs)
        returned = native(*args, **kwargs)
        watch.note(stage, block, arguments, returned)
        return returned

    with ExitStack() as stack:
        for stage, block in (*proposed.skipped, (proposed.verification_stage, proposed.verification_block)):
            stack.enter_context(exchanged_forward(block, functools.partial(note, stage, block, stage.native(block))))
        yield watch


_outcomes: WeakKeyDictionary[nn.Module, Anatomy | str] = WeakKeyDictionary()


def prove(network: nn.Module, proposed: Anatomy, bind: Callable[[Anatomy], Network]) -> Anatomy:
    """The anatomy of `network`, watched and tried out; costs two calls and a bit, once for each network.

    bind: the network bound to one call's inputs, which the trial may use up. Raises `NotThisArchitectureError` saying
    what was found instead.
    """
    outcome = _outcomes.get(network)
    if outcome is None:
        try:
            outcome = _tried_out(proposed, bind)
        except NotThisArchitectureError as found:
            outcome = str(found)
        _outcomes[network] = outcome
    if isinstance(outcome, str):
        name = proposed.architecture.title
        raise NotThisArchitectureError(
            f"SpeCa has no adapter for {name}, and its blocks cannot be skipped safely: {outcome}; it runs uncached"
        )
    return outcome


def _tried_out(proposed: Anatomy, bind: Callable[[Anatomy], Network]) -> Anatomy:
    with watched(proposed) as watch:
        watched_output = bind(proposed).full(None, False).output
    anatomy = watch.conclude()
    network = bind(anatomy)
    exact = network.full(None, True)
    if exact.features is None:
        raise NotThisArchitectureError("what its blocks carry has no row for each sample")
    _require_equal(exact.output, watched_output, "two equal calls give different outputs")
    try:
        trial = network.speculate(exact.features, None)
    except ForecastImpossibleError as refused:
        raise NotThisArchitectureError("its last block cannot be run on its own") from refused
    _require_equal(trial, exact.output, "its output depends on more than what its last block receives")
    return anatomy


def _require_equal(one: Tensors, other: Tensors, otherwise: str) -> None:
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            raise NotThisArchitectureError(otherwise)
        distance = torch.linalg.vector_norm(a.float() - b.float())
        if not distance <= TOLERANCE * torch.linalg.vector_norm(b.float()):  # also for what is not finite
            raise NotThisArchitectureError(otherwise)
