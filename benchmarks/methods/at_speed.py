"""What methods share that are asked for a speed: as many full calls as it allows, and a setting for each speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from measure.sampling import Case

from .base import Setting
from .plans import calls_for

SPEEDS = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
SHORT_SPEEDS = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True)
class AtSpeed:
    """A setting but for its family and its run. least_calls: with fewer full calls it cannot run."""

    speed: float
    least_calls = 3
    one_by_one = False

    @property
    def label(self) -> str:
        return f"{self.speed:g}x"

    def fits(self, case: Case) -> bool:
        return calls_for(self.speed, case.steps) >= self.least_calls


def at_speeds(
    make: Callable[[float], Setting], speeds: Sequence[float] = SPEEDS, short_speeds: Sequence[float] = SHORT_SPEEDS
) -> Callable[[bool], list[Setting]]:
    """`Method.settings` of a method that has one for each speed."""
    return lambda short: [make(speed) for speed in (short_speeds if short else speeds)]
