"""What a rival caches of a call, and how a call runs on forecasts of it instead of blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor, nn

from speca.adapters.base import Anatomy, BlockList, exchanged_forward, exchanged_forwards, parameters_of

Features = dict[str, Tensor]
"""What a level caches of one call: tensors as the blocks carry them, (B, T, D) in most networks, by name."""


class Level(Protocol):
    """capture: while the network runs in full, fill `into`. replay: run the network on forecasts instead of blocks."""

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None: ...

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None: ...


def blocks_of(anatomy: Anatomy) -> list[tuple[BlockList, nn.Module]]:
    """Every block in the order in which it runs."""
    return [*anatomy.skipped, (anatomy.verification_stage, anatomy.verification_block)]


def carried(stage: BlockList, block: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
    """The tensors that enter `block` and that it returns, as they are."""
    given = parameters_of(block, args, kwargs)
    return tuple(given[parameter] for parameter in stage.carried)


def as_tuple(returned: Any) -> tuple[Tensor, ...]:
    return tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)


def pack(stage: BlockList, tensors: tuple[Tensor, ...]) -> Any:
    """Carried tensors in the form in which a block of `stage` returns them."""
    return tensors[0] if len(tensors) == 1 and not stage.returns_tuple else tensors


class LastFeatures:
    """The output of the last block: all blocks are skipped, the head runs on the forecast."""

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        block = anatomy.verification_block

        def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            returned = native(*args, **kwargs)
            into.update({f"{i}": t.clone() for i, t in enumerate(as_tuple(returned))})
            return returned

        stack.enter_context(exchanged_forward(block, functools.partial(run, block.forward)))

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        stack.enter_context(exchanged_forwards(anatomy.untouched))
        stage, block = anatomy.verification_stage, anatomy.verification_block

        def answer(*args: Any, **kwargs: Any) -> Any:
            return pack(stage, tuple(forecast(f"{i}") for i in range(len(stage.carried))))

        stack.enter_context(exchanged_forward(block, answer))


class LastInput:
    """What enters the last block: the others are skipped, it and the head run for real on the forecast.

    One block of the network's real depth is computed in every forecast call.
    """

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        stage, block = anatomy.verification_stage, anatomy.verification_block

        def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            into.update({f"{i}": t.clone() for i, t in enumerate(stage.needed(block, args, kwargs))})
            return native(*args, **kwargs)

        stack.enter_context(exchanged_forward(block, functools.partial(run, block.forward)))

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        stack.enter_context(exchanged_forwards(anatomy.untouched))
        stage, block = anatomy.verification_stage, anatomy.verification_block

        def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            n = len(stage.needed(block, args, kwargs))
            new_args, new_kwargs = stage.with_needed(block, args, kwargs, tuple(forecast(f"{i}") for i in range(n)))
            return native(*new_args, **new_kwargs)

        stack.enter_context(exchanged_forward(block, functools.partial(run, block.forward)))


class BlockResiduals:
    """What every block adds to what it carries."""

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        for n, (stage, block) in enumerate(blocks_of(anatomy)):

            def run(
                native: Callable[..., Any], stage: BlockList, block: nn.Module, n: int, *args: Any, **kwargs: Any
            ) -> Any:
                before = [t.clone() for t in carried(stage, block, args, kwargs)]  # blocks work in place
                returned = native(*args, **kwargs)
                for i, (a, b) in enumerate(zip(as_tuple(returned), before, strict=True)):
                    into[f"{n}.{i}"] = a - b
                return returned

            stack.enter_context(exchanged_forward(block, functools.partial(run, block.forward, stage, block, n)))

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        for n, (stage, block) in enumerate(blocks_of(anatomy)):

            def answer(stage: BlockList, block: nn.Module, n: int, *args: Any, **kwargs: Any) -> Any:
                entering = carried(stage, block, args, kwargs)
                return pack(stage, tuple(t + forecast(f"{n}.{i}") for i, t in enumerate(entering)))

            stack.enter_context(exchanged_forward(block, functools.partial(answer, stage, block, n)))


class StackResiduals:
    """What each stage of blocks, from its first to its last, adds to what enters it.

    A forecast call adds the forecast to its own embedded input. A network of one list of blocks has one residual, FLUX
    and its relatives two, which add up to one: how the stages are joined is the network's own affair.
    """

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        for n, blocks in enumerate(stages_of(anatomy)):
            entered: list[Tensor] = []
            stack.enter_context(on_entry(blocks[0], functools.partial(_keep, entered)))
            stack.enter_context(_on_exit(blocks[-1], functools.partial(self._subtract, entered, f"{n}", into)))

    @staticmethod
    def _subtract(entered: list[Tensor], name: str, into: Features, returned: tuple[Tensor, ...]) -> None:
        into.update({f"{name}.{i}": a - b for i, (a, b) in enumerate(zip(returned, entered, strict=True))})

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        stack.enter_context(exchanged_forwards(anatomy.untouched))
        for n, blocks in enumerate(stages_of(anatomy)):
            entered: list[Tensor] = []
            stage, last = blocks[-1]

            def answer(stage: BlockList, entered: list[Tensor], n: int, *args: Any, **kwargs: Any) -> Any:
                return pack(stage, tuple(t + forecast(f"{n}.{i}") for i, t in enumerate(entered)))

            stack.enter_context(exchanged_forward(last, functools.partial(answer, stage, entered, n)))
            # What the network itself adds between blocks is in the residual: what counts is what enters the first.
            stack.enter_context(on_entry(blocks[0], functools.partial(_keep, entered)))


def stages_of(anatomy: Anatomy) -> list[list[tuple[BlockList, nn.Module]]]:
    """The blocks, stage by stage."""
    stages: list[list[tuple[BlockList, nn.Module]]] = []
    for stage, block in blocks_of(anatomy):
        if stages and stages[-1][0][0] is stage:
            stages[-1].append((stage, block))
        else:
            stages.append([(stage, block)])
    return stages


def on_entry(found: tuple[BlockList, nn.Module], see: Callable[[tuple[Tensor, ...]], None]) -> Any:
    """While entered, `see` gets the tensors that the block carries before it runs."""
    stage, block = found

    def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        see(carried(stage, block, args, kwargs))
        return native(*args, **kwargs)

    return exchanged_forward(block, functools.partial(run, block.forward))


def _on_exit(found: tuple[BlockList, nn.Module], see: Callable[[tuple[Tensor, ...]], None]) -> Any:
    block = found[1]

    def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        returned = native(*args, **kwargs)
        see(as_tuple(returned))
        return returned

    return exchanged_forward(block, functools.partial(run, block.forward))


def _keep(into: list[Tensor], tensors: tuple[Tensor, ...]) -> None:
    into[:] = [t.clone() for t in tensors]  # blocks work in place
