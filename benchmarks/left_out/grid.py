"""What is chosen: the defaults and the main constants of the rule, in the values that are tried.

Those that depend on one another are tried in every combination; each of the others alone, beside the defaults.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from methods.base import Setting
from methods.speca import SpeCa

GRID: dict[str, tuple[Any, ...]] = {
    "warmup_steps": (1, 2),
    "order": (1, 2),
    "check_every": (1, 2),
}
"""Field of `SpeCaConfig` -> values. A candidate takes one of each; what is not named here keeps its default."""

ALONE: dict[str, tuple[Any, ...]] = {
    "noise_gain_limit": (2.0, 5.0),
    "threshold_end_factor": (0.5, 2.0),
    "max_consecutive": (5, 20),
    "speca.verify.CARRIED_GROWTH": (1.0, 1.2),
    "speca.schedule.DECIDED_AT": (5.0, 20.0),
    "speca.schedule.STAYS_ASTRAY": (1.0, 4.0),
    "speca.undecided.CELLS": (2, 8),
    "speca.undecided.TOO_SMALL": (1.0, 6.0),
    "accumulate_error": (False,),
    "error_metric": ("relative_l1",),
    "forecaster": ("taylor",),
}
"""Field of `SpeCaConfig`, or constant of a module -> values other than the one it has."""

WITH_NOISE: dict[str, tuple[Any, ...]] = {"speca.draft.RENOISED_NOISE_GAIN_LIMIT": (1.0, 3.0)}
"""The same of what does nothing but where the sampler adds noise: chosen by itself, with the sampler `NOISY`."""

NOISY = "euler_ancestral"

CHOSEN_AT = 28
"""Steps at which all are tried and the choice is made. At others what is shipped is measured, and what was chosen."""

THRESHOLDS = (0.01, 0.025, 0.05, 0.10, 0.20, 0.40, 0.80, 1.60, 3.60)
NOISY_THRESHOLDS = (*THRESHOLDS, 8.0, 20.0)
"""With fresh noise errors are larger, and 4x is beyond the others."""


@dataclass(frozen=True)
class Candidate:
    """Fields of `SpeCaConfig` and constants by their names, that differ from what they are."""

    fields: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self._setting().label

    def settings(self, thresholds: Sequence[float] | None = None) -> list[Setting]:
        """Its curve, over the threshold: these, or `THRESHOLDS`."""
        return [self._setting(("threshold", threshold)) for threshold in thresholds or THRESHOLDS]

    def _setting(self, *more: tuple[str, Any]) -> SpeCa:
        return SpeCa((*self.fields, *more), family="SpeCa, candidate", constants=self.constants)


def defaults() -> Candidate:
    """As SpeCa is shipped."""
    from speca.config import SpeCaConfig

    return Candidate(tuple((name, getattr(SpeCaConfig(), name)) for name in GRID))


def candidates(steps: int) -> list[Candidate]:
    """At `CHOSEN_AT` steps all combinations of `GRID`, and `ALONE` beside the defaults; else the defaults."""
    if steps != CHOSEN_AT:
        return [defaults()]
    combined = [Candidate(tuple(zip(GRID, values, strict=True))) for values in itertools.product(*GRID.values())]
    return [*combined, *_beside_the_defaults(ALONE)]


def candidates_with_noise() -> list[Candidate]:
    """The defaults, and `WITH_NOISE` beside them."""
    return [defaults(), *_beside_the_defaults(WITH_NOISE)]


def _beside_the_defaults(alone: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    shipped = defaults().fields
    return [
        Candidate(shipped, ((name, value),)) if "." in name else Candidate((*shipped, (name, value)))
        for name, values in alone.items()
        for value in values
    ]
