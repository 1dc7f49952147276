"""What verification is worth: SpeCa's own forecast and last block, with nothing checked and nothing taken back.

The features that enter the last block are forecast as SpeCa forecasts them (Newton's form on the model's own time, of
the highest order up to 2 whose noise gain is within the architecture's limit), the last block and the head run for real
on them, and their output is the answer. Full calls stand at a fixed interval (`own_interval`) or where a plan has them
(`own_plan`): evenly up to the last call, or dense early and up to the second-to-last. A forecast call costs one block,
as an accepted call of SpeCa's does. What SpeCa does beyond that forecast where models predict noise or samplers add it
(`speca.session`) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject
from speca.adapters import recognise
from speca.forecast import forecast_weights

from . import forecasting
from .base import Method, Run, Setting
from .forecasting import Combined, Planned, run_of
from .plans import Plan, calls_for, dense_early, even, fixed_interval

ORDER = 2
FIRST_FULL = 2
INTERVALS = (2, 3, 4, 5, 6, 8, 10)
SHORT_INTERVALS = (2, 3, 4, 6, 8)
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
SHORT_SPEEDS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0)
POWERS = (1.3, 1.6)
LEAST_CALLS = 3


def _model_time(call: int, args: Sequence[Any]) -> float:
    """What the network itself is told of the noise level: the axis of SpeCa's anchors."""
    return float(args[1].flatten()[0])


def run_plan(subject: Subject, case: Case, batch: Batch, native: int, plan: Plan) -> Run:
    """SpeCa's forecast and last block wherever `plan` has no full call."""
    limit = recognise(subject.patcher.model.diffusion_model).architecture.noise_gain_limit
    patched, log = forecasting.attach(
        subject.patcher,
        "last input",
        lambda: Planned(plan),
        n_calls=native,
        make_memory=lambda rule: Combined(
            lambda times, t: forecast_weights("newton", times, t, ORDER, limit).weights, ORDER + 1
        ),
        clock=_model_time,
    )
    run = run_of(sample(patched, subject, case, batch), log, native)
    return replace(run, costs=[replace(cost, verified=cost.forecast, forecast=0.0) for cost in run.costs])


@dataclass(frozen=True)
class OwnInterval:
    """The first two calls, then every `interval`-th."""

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
class OwnPlan:
    """As many full calls as a speed allows. power: 0 for evenly up to the last call, else how early they are dense."""

    speed: float
    power: float = 0.0
    one_by_one: bool = False

    @property
    def family(self) -> str:
        return f"own forecast, dense early ^{self.power:g}" if self.power else "own forecast, even to the last"

    @property
    def label(self) -> str:
        return f"{self.speed:g}x"

    def fits(self, case: Case) -> bool:
        return calls_for(self.speed, case.steps) >= LEAST_CALLS

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        k = max(calls_for(self.speed, native, subject.depth), LEAST_CALLS)
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
