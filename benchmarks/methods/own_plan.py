"""What verification is worth: SpeCa itself, with nothing checked and nothing thrown away.

All that SpeCa does is done (its forecast, its last block, what a computed call puts right), but where full calls stand
is known before the run: at a fixed interval (`own_interval`), or where a plan has them (`own_plan`): evenly up to the
last call, or dense early and up to the second-to-last. A forecast call costs one block, as an accepted call of SpeCa's
does. Nothing is learnt from rejections, for there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import speca.session
from measure.sampling import Batch, Case
from measure.subjects import Subject
from speca.policy import Decision, situation

from .at_speed import SHORT_SPEEDS, AtSpeed
from .base import Method, Run, Setting
from .plans import Plan, calls_for, dense_early, even, fixed_interval
from .speca import SpeCa

FIRST_FULL = 1
INTERVALS = (2, 3, 4, 5, 6, 8, 10)
SHORT_INTERVALS = (2, 3, 4, 6, 8)
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
POWERS = (1.3, 1.6)
ANY_ERROR = 1e9


def run_plan(subject: Subject, case: Case, batch: Batch, native: int, plan: Plan) -> Run:
    """SpeCa with full calls where `plan` has them, and wherever anchors allow no forecast."""

    def planned(config: Any, call: Any, streams: Sequence[Any], splittable: bool, threshold: float) -> list[Decision]:
        of_all = situation(config, call, streams)
        possible = of_all.verifiable and of_all.calls not in plan
        return [Decision("speculate" if possible else "full", "" if possible else "warm_up")] * call.n_samples

    settings = (("threshold", ANY_ERROR), ("max_consecutive", max(native, 1)))
    with patch.object(speca.session, "decide_all", planned):
        return SpeCa(settings).run(subject, case, batch, native)


@dataclass(frozen=True)
class OwnInterval:
    """The first call, and then every `interval`-th."""

    interval: int
    family: str = "own forecast, fixed interval"
    one_by_one: bool = False

    @property
    def label(self) -> str:
        return f"interval {self.interval}"

    def fits(self, case: Case) -> bool:
        return case.steps > self.interval + 1

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        return run_plan(subject, case, batch, native, fixed_interval(native, self.interval, FIRST_FULL))


@dataclass(frozen=True)
class OwnPlan(AtSpeed):
    """As many full calls as a speed allows. power: 0 for evenly up to the last call, else how early they are dense."""

    power: float = 0.0

    @property
    def family(self) -> str:
        return f"own forecast, dense early ^{self.power:g}" if self.power else "own forecast, even to the last"

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        k = max(calls_for(self.speed, native, subject.depth), self.least_calls)
        plan = dense_early(native, k, self.power) if self.power else even(native, k)
        return run_plan(subject, case, batch, native, plan)


def interval_settings(short: bool) -> list[Setting]:
    return [OwnInterval(interval) for interval in (SHORT_INTERVALS if short else INTERVALS)]


def plan_settings(short: bool) -> list[Setting]:
    return [OwnPlan(speed, power) for power in (0.0, *POWERS) for speed in (SHORT_SPEEDS if short else SPEEDS)]


METHODS = (
    Method("own_interval", "SpeCa's forecast at a fixed interval, unchecked", interval_settings),
    Method("own_plan", "SpeCa's forecast at a plan, unchecked", plan_settings),
)
