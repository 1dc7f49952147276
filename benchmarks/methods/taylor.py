"""TaylorSeer's rule (arXiv 2503.06923): forecasts between full calls at a fixed interval, checked by nothing."""

from __future__ import annotations

from dataclasses import dataclass

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from . import forecasting
from .base import Method, Run, Setting
from .forecasting import Decision

INTERVALS = (2, 3, 4, 5, 6, 7, 8, 10)
SIDE_INTERVALS = (2, 3, 4, 6)
SHORT_INTERVALS = (2, 3, 4, 5, 6, 8)


@dataclass
class FixedInterval:
    """TaylorSeer: the first `first_full` calls, then every `interval`-th call is computed (interval 1: all)."""

    interval: int
    first_full: int = 3
    _since: int = 0

    def decide(self, call: int, n_calls: int) -> Decision:
        if call < self.first_full or self._since == self.interval - 1:
            self._since = 0
            return "full"
        self._since += 1
        return "forecast"

    def observe(self, error: float) -> None:
        raise AssertionError("a fixed interval checks nothing")


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
        patched, log = forecasting.attach(subject.patcher, self.level, lambda: FixedInterval(self.interval), self.order)
        return forecasting.run_of(sample(patched, subject, case, batch), log, native)


def settings(level: str, short: bool) -> list[Setting]:
    """Orders 1 and 2, which win at every speed, over all intervals; 0 and 3 at fewer."""
    if short:
        orders = (1, 2) if level == "modules" else (2,)
        return [Taylor(level, order, interval) for order in orders for interval in SHORT_INTERVALS]
    intervals = {0: SIDE_INTERVALS, 1: INTERVALS, 2: INTERVALS, 3: SIDE_INTERVALS}
    return [Taylor(level, order, interval) for order in intervals for interval in intervals[order]]


METHODS = (
    Method("taylor_last", "Taylor, last block's features", lambda short: settings("last", short)),
    Method("taylor_blocks", "Taylor, every block", lambda short: settings("blocks", short)),
    Method("taylor_modules", "TaylorSeer (every module)", lambda short: settings("modules", short)),
)
