"""What a method is to the benchmark: the same question to each, the same answer from each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from measure.curve import Point
from measure.quality import Cost, psnr
from measure.sampling import Batch, Case
from measure.subjects import Subject


@dataclass(frozen=True)
class Run:
    """One setting on one batch: latents (B, ...), what each sample cost, seconds of it all, bytes of cache held."""

    latents: Tensor
    costs: list[Cost]
    seconds: float
    cache_bytes: int = 0


def point_of(run: Run, subject: Subject, reference: Tensor) -> Point:
    """Where a run lies, at the real model's depth, by its pictures against `reference`, (B, ...) in [0, 1]."""
    quality = psnr(subject.picture(run.latents), reference)
    speed = statistics.harmonic_mean([cost.speedup(subject.depth) for cost in run.costs])
    return Point(speed, statistics.fmean(quality), worst=min(quality))


def points_of(run: Run, subject: Subject, reference: Tensor) -> list[Point]:
    """The same of each sample by itself."""
    quality = psnr(subject.picture(run.latents), reference)
    return [Point(cost.speedup(subject.depth), each) for cost, each in zip(run.costs, quality, strict=True)]


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


@dataclass(frozen=True)
class Method:
    """A name for the command line, a title for tables, and the settings that make its curve (short: the fewer)."""

    name: str
    title: str
    settings: Callable[[bool], list[Setting]]


class Calls:
    """Counts what the sampler asks for, and how much of it the network computes, whatever lies between.

    Make it on a model, give `patcher` to the other cache, and its result to `count_inside`: wrappers nest in the
    order in which they are added.
    """

    def __init__(self, patcher: Any, case: Case, batch: Batch) -> None:
        from comfy.patcher_extension import WrappersMP

        self._rows = len(batch) * (1 if case.cfg == 1 else 2)
        self.asked = 0
        self._reached = self._inside = 0.0
        self.patcher = patcher.clone()
        self.patcher.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "benchmark_asked", self._ask)

    def _ask(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        return executor(*args, **kwargs)

    def count_inside(self, patcher: Any) -> Any:
        from comfy.patcher_extension import WrappersMP

        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "benchmark_reached", self._reach)
        patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "benchmark_computed", self._compute)
        return patcher

    @property
    def computed(self) -> float:
        """Calls of the network. One that runs no wrappers (PixArt) lets none of them skip anything, either."""
        return self._inside or self._reached

    def _reach(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._reached += x.shape[0] / self._rows
        return executor(x, *args, **kwargs)

    def _compute(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._inside += x.shape[0] / self._rows
        return executor(x, *args, **kwargs)


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
