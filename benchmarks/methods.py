"""Every method as a `Setting` that can be run on a subject: the same call, the same answer, for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import rivals
from quality import Cost
from sampling import Batch, Case, sample, with_steps
from subjects import Subject
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """One setting on one batch: latents (B, ...), what each sample cost, seconds of it all, bytes of cache held."""

    latents: Tensor
    costs: list[Cost]
    seconds: float
    cache_bytes: int = 0


class Setting(Protocol):
    """A method with its parameters.

    family: the curve it lies on. label: the point on it. one_by_one: decides for a batch as a whole, so samples are
    run one at a time to give it the decisions a person would get.
    """

    family: str
    label: str
    one_by_one: bool

    def fits(self, case: Case) -> bool: ...

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        """`native` is the number of calls that the uncached run makes."""
        ...


class Calls:
    """Counts what the sampler asks for, and how much of it the network computes, whatever lies between.

    Make it on a model, give `patcher` to the other cache, and its result to `count_inside`: wrappers nest in the
    order in which they are added.
    """

    def __init__(self, patcher: Any, case: Case, batch: Batch) -> None:
        from comfy.patcher_extension import WrappersMP

        self._rows = len(batch) * (1 if case.cfg == 1 else 2)
        self.asked = 0
        self.computed = 0.0
        self.patcher = patcher.clone()
        self.patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "benchmark_asked", self._ask)

    def _ask(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return executor(*args, **kwargs)

    def count_inside(self, patcher: Any) -> Any:
        from comfy.patcher_extension import WrappersMP

        patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "benchmark_computed", self._compute)
        return patcher

    def _compute(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.computed += x.shape[0] / self._rows
        return executor(x, *args, **kwargs)


@dataclass(frozen=True)
class Uncached:
    """The reference, and the same with fewer steps: `steps` None takes the case's own."""

    steps: int | None = None
    one_by_one: bool = False

    @property
    def family(self) -> str:
        return "uncached" if self.steps is None else "fewer steps"

    @property
    def label(self) -> str:
        return "" if self.steps is None else f"{self.steps} steps"

    def fits(self, case: Case) -> bool:
        return self.steps is None or self.steps < case.steps

    def run(self, subject: Subject, case: Case, batch: Batch, native: int = 0) -> Run:
        calls = Calls(subject.patcher, case, batch)
        result = sample(calls.patcher, subject, with_steps(case, self.steps or case.steps), batch)
        return Run(result.latents, [Cost(native or calls.asked, calls.asked)] * len(batch), result.seconds)


@dataclass(frozen=True)
class CoreCache:
    """ComfyUI's own EasyCache or LazyCache node, executed as it is, at its default start and end."""

    node: str
    threshold: float
    one_by_one: bool = True

    @property
    def family(self) -> str:
        return self.node

    @property
    def label(self) -> str:
        return f"{self.threshold:g}"

    def fits(self, case: Case) -> bool:
        return True

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        import comfy_extras.nodes_easycache as core
        from comfy.patcher_extension import WrappersMP

        calls = Calls(subject.patcher, case, batch)
        # EasyCache adds in place to the network's input. In half precision that is a copy, in fp32 the sampler's own
        # latent: give it the copy that it has in real use.
        calls.patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "benchmark_copy", _on_a_copy)
        node = {"EasyCache": core.EasyCacheNode, "LazyCache": core.LazyCacheNode}[self.node]
        patched = node.execute(calls.patcher, self.threshold, 0.15, 0.95, False).result[0]
        result = sample(calls.count_inside(patched), subject, case, batch)
        cost = Cost(native, calls.computed, forecast=calls.asked - calls.computed)
        latent_bytes = result.latents[0].numel() * 4 * (2 if case.cfg != 1 else 1)
        return Run(result.latents, [cost] * len(batch), result.seconds, latent_bytes)


def _on_a_copy(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    return executor(x.clone(), *args, **kwargs)


@dataclass(frozen=True)
class Taylor:
    """TaylorSeer's rule: forecasts between full calls at a fixed interval, no verification."""

    level: str
    order: int
    interval: int
    one_by_one: bool = False

    @property
    def family(self) -> str:
        return f"Taylor {self.level} O{self.order}"

    @property
    def label(self) -> str:
        return f"interval {self.interval}"

    def fits(self, case: Case) -> bool:
        return case.steps > self.interval + 2

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        patched, log = rivals.attach(
            subject.patcher, self.level, lambda: rivals.FixedInterval(self.interval), self.order
        )
        result = sample(patched, subject, case, batch)
        return Run(result.latents, [_cost_of(log, native)] * len(batch), result.seconds, log.cache_bytes // len(batch))


@dataclass(frozen=True)
class Released:
    """The released SpeCa code's rule over every module's output; its other parameters are the published ones."""

    base: float
    decay: float
    shortest: int
    longest: int
    order: int
    floor: float = 0.1
    one_by_one: bool = True

    @property
    def family(self) -> str:
        return "released SpeCa"

    @property
    def label(self) -> str:
        return f"base {self.base:g} decay {self.decay:g} {self.shortest}-{self.longest} O{self.order}"

    def fits(self, case: Case) -> bool:
        return case.steps > self.shortest + 3

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        def rule() -> rivals.ReleasedSpeCa:
            return rivals.ReleasedSpeCa(self.base, self.decay, self.shortest, self.longest, self.floor)

        patched, log = rivals.attach(subject.patcher, "modules", rule, self.order)
        result = sample(patched, subject, case, batch)
        return Run(result.latents, [_cost_of(log, native)] * len(batch), result.seconds, log.cache_bytes // len(batch))


def _cost_of(log: rivals.RunLog, native: int) -> Cost:
    """Shares of the run's network calls, in units of the sampler's (cond and uncond may come in two calls)."""
    counts = Counter(log.decisions)
    unit = native / max(len(log.decisions), 1)
    return Cost(native, counts["full"] * unit, counts["checked"] * unit, forecast=counts["forecast"] * unit)


@dataclass(frozen=True)
class SpeCa:
    """SpeCa as built here. `settings` are fields of `SpeCaConfig` that differ from its defaults."""

    settings: tuple[tuple[str, Any], ...] = ()
    family: str = "SpeCa"
    one_by_one: bool = False

    @property
    def label(self) -> str:
        return " ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in self.settings
        )

    def fits(self, case: Case) -> bool:
        return True

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        from speca.attach import attach, attachment_of
        from speca.config import SpeCaConfig

        patched = attach(subject.patcher, SpeCaConfig(**dict(self.settings)))
        result = sample(patched, subject, case, batch)
        record = attachment_of(patched).run_of()
        assert record is not None
        if record.header.native is not None:
            return Run(result.latents, [Cost(native, native)] * len(batch), result.seconds)
        unit = native / max(record.totals.calls, 1)
        counts = [Counter() for _ in range(len(batch))]
        for call in record.calls:
            for row in call.rows:
                counts[row.sample][row.outcome] += 1
        costs = [Cost(native, c["full"] * unit, c["accepted"] * unit, c["rejected"] * unit) for c in counts]
        return Run(result.latents, costs, result.seconds, record.totals.cache_bytes // len(batch))


def run_setting(setting: Setting, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
    """Run a setting on a batch, sample by sample if it decides for a batch as a whole."""
    if not setting.one_by_one or len(batch) == 1:
        return setting.run(subject, case, batch, native)
    runs = [setting.run(subject, case, single, native) for single in batch.singles()]
    return join(runs)


def join(runs: list[Run]) -> Run:
    """Runs over parts of a batch as one."""
    import torch

    return Run(
        torch.cat([run.latents for run in runs]),
        [cost for run in runs for cost in run.costs],
        sum(run.seconds for run in runs),
        max(run.cache_bytes for run in runs),
    )


# --- What is measured -------------------------------------------------------------------------------------------------

STEP_COUNTS = (40, 33, 30, 28, 25, 22, 20, 17, 16, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4)
CORE_THRESHOLDS = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.9, 1.4)
INTERVALS = (2, 3, 4, 5, 6, 7, 8, 10)
SIDE_INTERVALS = (2, 3, 4, 6)
SPECA_THRESHOLDS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.10, 0.14, 0.20, 0.24, 0.28, 0.34, 0.40, 0.56, 0.80)

SHORT_STEP_COUNTS = (25, 20, 17, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4)
SHORT_CORE_THRESHOLDS = (0.1, 0.2, 0.4, 0.9)
SHORT_INTERVALS = (2, 3, 4, 5, 6, 8)
SHORT_SPECA_THRESHOLDS = (0.005, 0.02, 0.05, 0.10, 0.14, 0.20, 0.24, 0.28, 0.34, 0.40, 0.56, 0.80)


def fewer_steps(short: bool) -> list[Setting]:
    return [Uncached(steps) for steps in (SHORT_STEP_COUNTS if short else STEP_COUNTS)]


def core_caches(node: str, short: bool) -> list[Setting]:
    return [CoreCache(node, threshold) for threshold in (SHORT_CORE_THRESHOLDS if short else CORE_THRESHOLDS)]


def taylor(level: str, short: bool) -> list[Setting]:
    """Orders 1 and 2, which win at every speed, over all intervals; 0 and 3 at fewer."""
    if short:
        orders = (1, 2) if level == "modules" else (2,)
        return [Taylor(level, order, interval) for order in orders for interval in SHORT_INTERVALS]
    intervals = {0: SIDE_INTERVALS, 1: INTERVALS, 2: INTERVALS, 3: SIDE_INTERVALS}
    return [Taylor(level, order, interval) for order in intervals for interval in intervals[order]]


def released(short: bool) -> list[Setting]:
    """The published parameters for FLUX, HunyuanVideo and DiT, the base threshold varied around them."""
    flux = [Released(base, 0.3, 2, 8, 2) for base in ((1.0, 7.0) if short else (0.5, 1.0, 2.0, 4.0, 7.0, 10.0))]
    video = [Released(base, 0.1, 4, 12, 1) for base in ((1.0,) if short else (0.5, 1.0, 2.0))]
    published_dit = ((0.1, 0.01, 2, 5), (0.3, 0.05, 3, 8))
    dit = [Released(*parameters, 4, 0.01) for parameters in (published_dit[:1] if short else published_dit)]
    return [*flux, *video, *dit]


def speca(short: bool) -> list[Setting]:
    """Over the threshold, everything else as `SpeCaConfig` has it."""
    return [SpeCa((("threshold", value),)) for value in (SHORT_SPECA_THRESHOLDS if short else SPECA_THRESHOLDS)]


@dataclass(frozen=True)
class Method:
    """A name for the command line, a title for tables, and the settings that make its curve (short: the fewer)."""

    name: str
    title: str
    settings: Callable[[bool], list[Setting]]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("fewer_steps", "fewer steps", fewer_steps),
        Method("easycache", "EasyCache", lambda short: core_caches("EasyCache", short)),
        Method("lazycache", "LazyCache", lambda short: core_caches("LazyCache", short)),
        Method("taylor_last", "Taylor, last block's features", lambda short: taylor("last", short)),
        Method("taylor_blocks", "Taylor, every block", lambda short: taylor("blocks", short)),
        Method("taylor_modules", "TaylorSeer (every module)", lambda short: taylor("modules", short)),
        Method("released", "SpeCa, released rule", released),
        Method("speca", "SpeCa", speca),
    )
}
RIVALS = tuple(name for name in METHODS if name != "speca")
