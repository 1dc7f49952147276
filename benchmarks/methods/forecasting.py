"""Forecasting whole calls of a network: full calls where a rule says so, forecasts of what they left behind between.

What is cached (`levels`), when a call is computed (`Rule`) and what is made of the cache (`Memory`) are independent.
Times are call numbers, as in the released codes, unless a method says otherwise. Nothing is ever taken back. A batch is
decided as a whole, so a rule that looks at errors should be run one sample at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor

from speca.adapters.base import Anatomy
from speca.history import combine

from .attachment import Decision, NetworkRun, RunLog, attach_run, run_of, stream_of
from .levels import BlockResiduals, Features, LastFeatures, LastInput, Level, StackResiduals
from .modules import MODULES, ModuleOutputs, modules_of

__all__ = ("LEVELS", "MODULES", "Decision", "attach", "modules_of", "run_of")

LEVELS: dict[str, Level] = {
    "last": LastFeatures(),
    "last input": LastInput(),
    "stack": StackResiduals(),
    "blocks": BlockResiduals(),
    "modules": ModuleOutputs(),
}


# --- When a call is computed ------------------------------------------------------------------------------------------


class Rule(Protocol):
    def decide(self, call: int, n_calls: int) -> Decision: ...

    def observe(self, error: float) -> None: ...


class Planned:
    """Full calls where a plan has them; a call that the plan does not know of is full too."""

    def __init__(self, calls: Sequence[int]) -> None:
        self._calls = frozenset(calls)

    def decide(self, call: int, n_calls: int) -> Decision:
        return "full" if call in self._calls or call >= n_calls else "forecast"

    def observe(self, error: float) -> None:
        raise AssertionError("a plan checks nothing")


# --- What is made of the cache ----------------------------------------------------------------------------------------


class Memory(Protocol):
    """What full calls left behind of one tensor, by the time at which they were made."""

    def record(self, at: float, tensor: Tensor) -> None: ...

    def forecast(self, at: float) -> Tensor: ...

    @property
    def nbytes(self) -> int: ...


class TaylorFactors:
    """Feature and finite differences of one tensor at the newest full call, as `derivative_approximation` builds them.

    Each difference is taken over the last gap only. Differences start at call `first_full` - 1: those inside the
    warm-up, one call apart, are never used, which keeps the second difference from spanning unequal gaps there.
    """

    def __init__(self, order: int, first_full: int = 3) -> None:
        self._order = order
        self._first_full = first_full
        self._call = 0.0
        self.factors: list[Tensor] = []

    def record(self, at: float, tensor: Tensor) -> None:
        factors = [tensor]
        for i in range(min(self._order, len(self.factors))):
            if at <= self._first_full - 2:
                break
            factors.append((factors[i] - self.factors[i]) / (at - self._call))
        self._call = at
        self.factors = factors

    def forecast(self, at: float) -> Tensor:
        """sum_i factor_i (call - newest)^i / i!."""
        distance = at - self._call
        result = self.factors[0].clone()
        for i, factor in enumerate(self.factors[1:], start=1):
            result.add_(factor, alpha=distance**i / math.factorial(i))
        return result

    @property
    def nbytes(self) -> int:
        return sum(f.numel() * f.element_size() for f in self.factors)


class Combined:
    """The newest `depth` tensors, combined by weights that follow from times alone: `weigh(times, at)`.

    Of two at one time (heun calls twice at a sigma) the newer stays.
    """

    def __init__(self, weigh: Callable[[list[float], float], Sequence[float]], depth: int | None = None) -> None:
        self._weigh = weigh
        self._depth = depth
        self.kept: list[tuple[float, Tensor]] = []

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.kept]

    def record(self, at: float, tensor: Tensor) -> None:
        self.kept = [(time, old) for time, old in self.kept if time != at]
        self.kept.append((at, tensor))
        if self._depth is not None:
            self.kept = self.kept[-self._depth :]

    def combined(self, weights: Sequence[float]) -> Tensor:
        tensors = [tensor for _, tensor in self.kept]
        return combine(weights, tensors, tensors[-1].device)

    def forecast(self, at: float) -> Tensor:
        return self.combined(self._weigh(self.times, at))

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for _, t in self.kept)


# --- A run ------------------------------------------------------------------------------------------------------------

Clock = Callable[[int, Sequence[Any]], float]
"""(call, arguments of the network's forward) -> the time of a call."""


def by_call(call: int, args: Sequence[Any]) -> float:
    return call


class _Stream:
    """One conditioning chunk layout's calls: ComfyUI may evaluate cond and uncond together or one after the other."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.calls = 0
        self.memories: dict[str, Memory] = {}


class _Run(NetworkRun):
    def __init__(
        self,
        level: Level,
        make_rule: Callable[[], Any],
        make_memory: Callable[[Any], Memory],
        n_calls: int,
        clock: Clock,
        log: RunLog,
    ) -> None:
        super().__init__()
        self._level = level
        self._make_rule = make_rule
        self._make_memory = make_memory
        self._n_calls = n_calls
        self._clock = clock
        self._log = log
        self._streams: dict[Any, _Stream] = {}

    def forward(self, anatomy: Anatomy, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        key = stream_of(kwargs.get("transformer_options", {}))
        if key not in self._streams:
            self._streams[key] = _Stream(self._make_rule())
        stream = self._streams[key]
        call = stream.calls
        stream.calls += 1
        at = self._clock(call, args)
        decision = stream.rule.decide(call, self._n_calls)
        self._log.decisions.append(decision)
        with ExitStack() as stack:
            if decision == "full":
                features: Features = {}
                self._level.capture(anatomy, features, stack)
                output = native(*args, **kwargs)
                for name, feature in features.items():
                    if name not in stream.memories:
                        stream.memories[name] = self._make_memory(stream.rule)
                    stream.memories[name].record(at, feature)
                held = sum(m.nbytes for s in self._streams.values() for m in s.memories.values())
                self._log.cache_bytes = max(self._log.cache_bytes, held)
                return output

            def forecast(name: str) -> Tensor:
                return stream.memories[name].forecast(at)

            self._level.replay(anatomy, forecast, stack)
            errors: list[float] = []
            if decision == "checked":
                assert isinstance(self._level, ModuleOutputs)
                self._level.check(anatomy, forecast, errors, stack)
            output = native(*args, **kwargs)
        for error in errors:
            stream.rule.observe(error)
            self._log.errors.append(error)
        return output


def attach(
    patcher: Any,
    level: str,
    make_rule: Callable[[], Any],
    order: int = 0,
    *,
    n_calls: int | None = None,
    make_memory: Callable[[Any], Memory] | None = None,
    clock: Clock = by_call,
) -> tuple[Any, RunLog]:
    """A clone of `patcher` that samples with a rival, and the log of its newest run.

    level: a name of `LEVELS`. make_rule: a rule for each stream. order: of TaylorSeer's factors, unless `make_memory`
    makes another memory for each tensor of a stream with that rule. n_calls: that a stream will make; the run's steps
    where it is not said.
    """

    def taylor(rule: Any) -> Memory:
        return TaylorFactors(order, getattr(rule, "first_full", 3))

    def start(sigmas: list[float], log: RunLog) -> _Run:
        n = len(sigmas) - 1 if n_calls is None else n_calls
        return _Run(LEVELS[level], make_rule, make_memory or taylor, n, clock, log)

    return attach_run(patcher, start)
