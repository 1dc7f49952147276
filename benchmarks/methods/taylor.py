"""TaylorSeer's rule (arXiv 2503.06923): forecasts between full calls at a fixed interval, checked by nothing.

A fixed interval leaves the last call, whose output goes straight into the picture, to chance: often to the longest
forecast. So every setting is also measured with the last call computed, which the paper does not do.
"""

from __future__ import annotations

from dataclasses import dataclass

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from . import forecasting
from .base import Method, Run, Setting
from .forecasting import Decision

INTERVALS = (2, 3, 4, 5, 6, 7, 8, 10)
SIDE_INTERVALS = (2, 3, 4, 6)
SHORT_INTERVALS = (2, 3, 4, 6, 8)


@dataclass
class FixedInterval:
    """TaylorSeer: the first `first_full` calls, then every `interval`-th call is computed (interval 1: all).

    last: the last call is computed too.
    """

    interval: int
    first_full: int = 3
    last: bool = False
    _since: int = 0

    def decide(self, call: int, n_calls: int) -> Decision:
        at_the_end = self.last and call >= n_calls - 1
        if call < self.first_full or self._since == self.interval - 1 or at_the_end:
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
    last: bool = False
    one_by_one: bool = False

    @property
    def family(self) -> str:
        return f"Taylor {self.level} O{self.order}" + (", last call" if self.last else "")

    @property
    def label(self) -> str:
        return f"interval {self.interval}"

    def fits(self, case: Case) -> bool:
        return case.steps > self.interval + 2

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        def rule() -> FixedInterval:
            return FixedInterval(self.interval, last=self.last)

        patched, log = forecasting.attach(subject.patcher, self.level, rule, self.order, n_calls=native)
        return forecasting.run_of(sample(patched, subject, case, batch), log, native)


def settings(level: str, short: bool) -> list[Setting]:
    """Orders 1 and 2, which win at every speed, over all intervals; 0 and 3 at fewer."""
    if short:
        orders = (1, 2) if level == "modules" else (2,)
        intervals = dict.fromkeys(orders, SHORT_INTERVALS)
    else:
        intervals = {0: SIDE_INTERVALS, 1: INTERVALS, 2: INTERVALS, 3: SIDE_INTERVALS}
    return [
        Taylor(level, order, interval, last)
        for last in (False, True)
        for order in intervals
        for interval in intervals[order]
    ]


METHODS = (
    Method("taylor_last", "Taylor, last block's features", lambda short: settings("last", short)),
    Method("taylor_blocks", "Taylor, every block", lambda short: settings("blocks", short)),
    Method("taylor_modules", "TaylorSeer (every module)", lambda short: settings("modules", short)),
)
