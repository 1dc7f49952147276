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
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ..call import ForecastImpossibleError, Network, Tensors
from .base import (
    Anatomy,
    Architecture,
    BlockList,
    NotThisArchitectureError,
    Parameter,
    called_otherwise,
    exchanged_forward,
    other_methods_noted,
    parameters_of,
    uncompiled,
)

LEAST_BLOCKS = 4
LEAST_SHARE = 0.5  # of the network's parameters, in the blocks
LEAST_SHARE_OF_SECOND = 0.1  # a shorter list (refiners of the text) runs on every call instead
TOLERANCE = 1e-3  # relative L2 of the trial's output: the same arithmetic on the same numbers


def discover(network: nn.Module, missing: str) -> Anatomy:
    """The anatomy that the structure proposes, still to be proved. Raises `NotThisArchitectureError` if there is none.

    missing: why no adapter is used, as the beginning of a sentence. Equal means the same class and the same parameters:
    the blocks of a U-Net, which change their width, are not.
    """
    total = sum(p.numel() for p in network.parameters())
    lists = sorted(_lists_of_equal_blocks(network), key=lambda found: -found.share(total))
    chosen = lists[:1] + [second for second in lists[1:2] if second.share(total) >= LEAST_SHARE_OF_SECOND]
    blocks = [(found.stage, block) for found in chosen for block in found.blocks]
    if len(blocks) < LEAST_BLOCKS or sum(found.share(total) for found in chosen) < LEAST_SHARE:
        what = "its structure is not that of a transformer with equal blocks"
        raise NotThisArchitectureError(f"{missing}, and {what}; it runs uncached")
    architecture = Architecture(
        name="generic",
        title=type(network).__name__,
        networks=(type(network).__name__,),
        stages=tuple(found.stage for found in chosen),
        experimental=True,
    )
    stage, block = blocks[-1]
    return Anatomy(architecture, tuple(blocks[:-1]), stage, block, missing=missing)


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
        self.other_methods: set[str] = set()

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
        if not counts and self.other_methods:
            raise NotThisArchitectureError(f"its blocks are {called_otherwise('forward', self.other_methods)}")
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
        watch.other_methods = stack.enter_context(other_methods_noted(proposed.verification_block, "forward"))
        for stage, block in (*proposed.skipped, (proposed.verification_stage, proposed.verification_block)):
            stack.enter_context(exchanged_forward(block, functools.partial(note, stage, block, stage.native(block))))
        yield watch


@dataclass(frozen=True)
class _Proved:
    """What a trial showed, told without the network: its lists of blocks, and where in them each of its blocks is, as
    (list, place), in the order in which they run."""

    architecture: Architecture
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, anatomy: Anatomy, network: nn.Module) -> _Proved:
        lists = [stage.blocks_of(network) for stage in anatomy.architecture.stages]
        found = {id(block): (i, place) for i, blocks in enumerate(lists) for place, block in enumerate(blocks)}
        in_order = (*(block for _, block in anatomy.skipped), anatomy.verification_block)
        return cls(anatomy.architecture, tuple(found[id(block)] for block in in_order))

    def found_in(self, network: nn.Module) -> Anatomy:
        stages = self.architecture.stages
        lists = [stage.blocks_of(network) for stage in stages]
        *skipped, (stage, block) = [(stages[i], lists[i][place]) for i, place in self.places]
        return Anatomy(self.architecture, tuple(skipped), stage, block)


# What trials showed in this process. Classes are held weakly, and nothing of a network is held.
_outcomes: WeakKeyDictionary[type[nn.Module], dict[Hashable, _Proved | str]] = WeakKeyDictionary()


def prove(
    network: nn.Module, proposed: Anatomy, bind: Callable[[Anatomy], Network], manner: Hashable = None
) -> Anatomy:
    """The anatomy of `network`, watched and tried out; costs two calls and a bit, once a process for all networks of
    one class and structure that are called in one `manner`.

    bind: the network bound to one call's inputs, which the trial may use up. manner: what may make blocks do something
    else, such as patches, by name; it is kept for good. Raises `NotThisArchitectureError` saying what was found.
    """
    outcomes = _outcomes.setdefault(type(network), {})
    key = _structure(network, proposed), manner
    if key not in outcomes:
        try:
            outcomes[key] = _Proved.of(_tried_out(proposed, bind), network)
        except NotThisArchitectureError as found:
            outcomes[key] = str(found)
    outcome = outcomes[key]
    if isinstance(outcome, str):
        raise NotThisArchitectureError(
            f"{proposed.missing}, and its blocks cannot be skipped safely: {outcome}; it runs uncached"
        )
    return outcome.found_in(network)


def _structure(network: nn.Module, proposed: Anatomy) -> Hashable:
    """Equal for networks of one class that are built alike: the same kinds of modules with parameters of the same
    shapes, and the same flags on the network and its blocks."""
    modules = tuple((path, ref(type(module))) for path, module in network.named_modules())
    tensors = (*network.named_parameters(), *network.named_buffers())
    flagged = (network, *(uncompiled(block) for _, block in proposed.skipped), uncompiled(proposed.verification_block))
    return modules, tuple((name, tensor.shape) for name, tensor in tensors), tuple(map(_flags, flagged))


def _flags(module: nn.Module) -> Hashable:
    """What is set on the module itself and may choose between ways to run. Not numbers, which may count its calls."""
    flags = {name: value for name, value in vars(module).items() if isinstance(value, (bool, str))}
    forward = vars(module).get("forward")
    return frozenset(flags.items()), getattr(forward, "__qualname__", forward is not None)


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
