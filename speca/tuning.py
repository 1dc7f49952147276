"""Which settings meet a goal: what is tried, what was foreseen and measured of it, and which is best. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .config import SpeCaConfig
from .events import RunRecord

MAX_RUNS = 3
"""Real runs at most, besides the recorded one."""

THRESHOLDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.3, 0.6, 1.0)
"""Tried first, up to the most that the node takes. On the zoo's models the first is 1x to 2.4x as fast, the last 2.7x
at the least."""

FINER = 3
"""Thresholds tried between the two that enclose the goal."""

ORDERS = (1, 2, 3)
WARMUPS = (1, 2, 4)

# A goal counts as met within these: seconds differ from run to run, and a prediction has the errors that it has.
SPEED_SLACK = 0.02
PSNR_SLACK = 0.1

# A prediction agrees with a run within these, or one call.
CALLS_AGREE = 0.1
PSNR_AGREES = 1.0

ASKED_FOR, ASKED_POWER = 0.088, 0.77
"""By threshold ** `ASKED_POWER` times `ASKED_FOR` of itself a final latent is off, on the average over the zoo's models
(benchmarks/results/left-out.csv)."""


@dataclass(frozen=True)
class Goal:
    """`kind` "speed": the closest picture at a speedup of `least`; "psnr": the fastest at `least` dB."""

    kind: Literal["speed", "psnr"]
    least: float

    def short_by(self, figures: Figures) -> float:
        """How far short `figures` fall of it, in its own unit; 0 where it is met."""
        short = self.least - self.value(figures)
        slack = SPEED_SLACK * self.least if self.kind == "speed" else PSNR_SLACK
        return short if short > slack else 0.0

    def value(self, figures: Figures) -> float:
        return figures.speedup if self.kind == "speed" else figures.psnr

    def rank(self, figures: Figures) -> tuple[float, float]:
        """The larger the better: first what is short of the goal least, then the other quality."""
        other = figures.psnr if self.kind == "speed" else figures.speedup
        return -self.short_by(figures), other


@dataclass(frozen=True)
class Settings:
    """What is tuned of a `SpeCaConfig`."""

    threshold: float
    order: int
    warmup_steps: int

    @classmethod
    def of(cls, config: SpeCaConfig) -> Settings:
        return cls(config.threshold, config.order, config.warmup_steps)

    def on(self, config: SpeCaConfig) -> SpeCaConfig:
        return replace(config, mode="threshold", **vars(self))

    def __str__(self) -> str:
        warm_up = "" if self.warmup_steps == 1 else f", {self.warmup_steps} warm-up steps"
        return f"threshold {self.threshold:g}, order {self.order}{warm_up}"


@dataclass(frozen=True)
class Figures:
    """Of a run, foreseen or measured. psnr in dB against the uncached result. computed: calls, rejected ones too."""

    speedup: float
    psnr: float
    calls: int
    computed: int
    rejected: int

    def told(self) -> str:
        quality = "the same picture" if self.psnr == math.inf else f"{self.psnr:.1f} dB"
        return f"{self.speedup:.2f}x at {quality} ({self.computed} of {self.calls} calls computed)"

    def to_json(self) -> dict[str, Any]:
        psnr = round(self.psnr, 2) if math.isfinite(self.psnr) else "infinite" if self.psnr > 0 else None
        return {
            "speedup": round(self.speedup, 3),
            "psnr": psnr,
            "calls": self.calls,
            "computed": self.computed,
            "rejected": self.rejected,
        }


def figures(record: RunRecord, speedup: float, psnr: float) -> Figures:
    totals = record.totals
    return Figures(speedup, psnr, totals.calls, totals.full + totals.rejected, totals.rejected)


@dataclass(frozen=True)
class Check:
    """One real run: what was foreseen of it, corrected by what all other runs were off by, and what it was."""

    settings: Settings
    predicted: Figures
    measured: Figures

    @property
    def agrees(self) -> bool:
        """Whether predictions can be relied on."""
        off = abs(self.predicted.computed - self.measured.computed)
        same = self.predicted.psnr == self.measured.psnr
        return off <= max(1, CALLS_AGREE * self.measured.computed) and (
            same or abs(self.predicted.psnr - self.measured.psnr) <= PSNR_AGREES
        )


class Search:
    """What is known of all candidates. Predictions are corrected by what real runs were off by."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._replayed: dict[Settings, Figures] = {}
        self._measured: dict[Settings, Figures] = {}

    def add(self, settings: Settings, replayed: Figures) -> None:
        self._replayed[settings] = replayed

    def measure(self, settings: Settings, measured: Figures) -> None:
        self._measured[settings] = measured

    @property
    def predicted(self) -> Mapping[Settings, Figures]:
        """Of every candidate, corrected by all runs but its own."""
        return {settings: self._corrected(settings) for settings in self._replayed}

    @property
    def checks(self) -> list[Check]:
        """The real runs, in their order."""
        return [Check(each, self._corrected(each), measured) for each, measured in self._measured.items()]

    def expected(self, settings: Settings) -> Figures:
        """What it was where it was run, else what is foreseen."""
        return self._measured.get(settings) or self._corrected(settings)

    def best(self, among: Iterable[Settings] | None = None, goal: Goal | None = None) -> Settings:
        """Among candidates that do the same, the strictest."""
        aim = goal or self.goal
        return max(
            self._replayed if among is None else among,
            key=lambda s: (*aim.rank(self.expected(s)), -s.threshold, s.order == 2, -s.warmup_steps),
        )

    def _aim(self) -> Goal:
        """The goal, and more where all real runs fell short of a PSNR: what looks best may look better than it is."""
        if not self._measured or self.goal.kind == "speed":
            return self.goal
        return replace(self.goal, least=self.goal.least + self.goal.short_by(self.chosen().measured))

    def next_run(self) -> Settings | None:
        """What is worth a real run: the best, and if predictions prove wrong the next best; None if nothing is."""
        untried = [settings for settings in self._replayed if settings not in self._measured]
        if len(self._measured) >= MAX_RUNS or not untried:
            return None
        best = self.best(goal=self._aim())
        if best not in self._measured:
            return best
        if self.chosen().agrees:
            return None
        # One that does what was done already would teach nothing.
        known = {self._replayed[settings] for settings in self._measured}
        others = [settings for settings in untried if self._replayed[settings] not in known]
        return self.best(others, self._aim()) if others else None

    def chosen(self) -> Check:
        """The best of those that were run."""
        return max(self.checks, key=lambda check: self.goal.rank(check.measured))

    def _corrected(self, settings: Settings) -> Figures:
        """The nearest real run counts most: what is off by much at one speed is not at another."""
        replayed = self._replayed[settings]
        faster = more_db = more_computed = weight = 0.0
        for other, measured in self._measured.items():
            if other == settings:
                continue
            raw = self._replayed[other]
            near = 1 / (0.05 + abs(math.log(replayed.speedup / raw.speedup)))
            faster += near * math.log(measured.speedup / raw.speedup)
            more_computed += near * math.log(measured.computed / raw.computed)
            if math.isfinite(measured.psnr) and math.isfinite(raw.psnr):
                more_db += near * (measured.psnr - raw.psnr)
            weight += near
        if weight == 0:
            return replayed
        return replace(
            replayed,
            speedup=replayed.speedup * math.exp(faster / weight),
            psnr=replayed.psnr + more_db / weight,
            computed=min(round(replayed.computed * math.exp(more_computed / weight)), replayed.calls),
        )

    def finer(self) -> Iterator[Settings]:
        """What is worth a replay after the first ones: thresholds about the goal, and there other orders, warm-ups."""
        at = self.best()
        order = sorted(
            (s for s in self._replayed if replace(s, threshold=at.threshold) == at), key=lambda s: s.threshold
        )
        place = order.index(at)
        low, high = order[max(place - 1, 0)], order[min(place + 1, len(order) - 1)]
        between = list(_between(low.threshold, at.threshold)) + list(_between(at.threshold, high.threshold))
        yield from self._new(replace(at, threshold=each) for each in between)

    def variants(self) -> Iterator[Settings]:
        """Of the best so far: other orders and warm-ups, at its threshold and beside it."""
        at = self.best()
        for order, warm_up in [(o, at.warmup_steps) for o in ORDERS] + [(at.order, w) for w in WARMUPS]:
            yield from self._new(Settings(_round(at.threshold * by), order, warm_up) for by in (0.8, 1.0, 1.25))

    def _new(self, wanted: Iterable[Settings]) -> Iterator[Settings]:
        for settings in dict.fromkeys(wanted):
            if settings not in self._replayed:
                yield settings


def first(config: SpeCaConfig) -> list[Settings]:
    """All of `THRESHOLDS`, with the node's own among them."""
    own = Settings.of(config)
    return [replace(own, threshold=each) for each in sorted({*THRESHOLDS, own.threshold} - {0.0})]


def _between(low: float, high: float) -> Iterator[float]:
    for i in range(1, FINER + 1):
        yield _round(low * (high / low) ** (i / (FINER + 1)))


def _round(threshold: float) -> float:
    """As the node's slider shows it: three decimals, of the small ones two digits."""
    return max(round(threshold, 3), 0.001)


def foreseen(replayed: float, size: float, config: SpeCaConfig) -> float:
    """How far off a final latent will be whose replay is off by `replayed`; `size` is the latent's own, all root mean
    squares: the geometric mean of that and of what the threshold asks for.

    A replay sees too little, for it does not know what the network makes of a latent that strayed: before the first
    real run PSNR was foreseen 3.8 dB too high, 6.0 rms; so 0.9 and 4.4 (the three emoji models, on which nothing in
    here was chosen; 24 tunings of four goals).
    """
    usual = config.accumulate_error and config.threshold_end_factor == 1 and config.error_metric == "relative_l2"
    if not usual or replayed == 0:
        return replayed
    return math.sqrt(replayed * size * ASKED_FOR * config.threshold**ASKED_POWER)


def psnr_of(error: float, at_one: float) -> float:
    """at_one: dB of a final latent that is off by 1. Small errors of a picture grow as those of its latent."""
    if math.isnan(error):
        return -math.inf
    return math.inf if error == 0 else at_one - 20 * math.log10(error)


def verdict(goal: Goal, check: Check) -> str:
    """`threshold 0.12, order 2: 3.05x at 38.1 dB, foreseen 3.1x at 38.4 dB.` and by how much the goal is missed."""
    got, foreseen = check.measured, check.predicted
    said = f"{check.settings}: {got.told()}, foreseen {foreseen.told()}"
    short = goal.short_by(got)
    if short == 0:
        return f"{said}."
    by = f"{short:.2f}x" if goal.kind == "speed" else f"{short:.1f} dB"
    asked = f"{goal.least:g}x" if goal.kind == "speed" else f"{goal.least:g} dB"
    return f"{said}. That is {by} short of {asked}, and the best that was found."


def to_json(search: Search, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    chosen = search.chosen()

    def row(of: Settings) -> dict[str, Any]:
        return {"threshold": of.threshold, "order": of.order, "warmup_steps": of.warmup_steps}

    return {
        "version": 1,
        "summary": verdict(search.goal, chosen),
        "goal": {search.goal.kind: search.goal.least},
        "settings": dict(settings),
        "model": dict(identity),
        "runs": [
            {**row(c.settings), "predicted": c.predicted.to_json(), "measured": c.measured.to_json()}
            for c in search.checks
        ],
        "candidates": [{**row(s), **f.to_json()} for s, f in ordered(search.predicted)],
    }


def ordered(predicted: Mapping[Settings, Figures]) -> Sequence[tuple[Settings, Figures]]:
    """By speed."""
    return sorted(predicted.items(), key=lambda each: each[1].speedup)
