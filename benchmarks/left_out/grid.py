"""What is chosen: every constant and default of the rule, in the values that are tried."""

from __future__ import annotations

import itertools
from typing import Any

from methods.base import Setting
from methods.speca import SpeCa

GRID: dict[str, tuple[Any, ...]] = {
    "warmup_steps": (1, 2),
    "order": (1, 2),
    "check_every": (1, 2),
}
"""Field of `SpeCaConfig` -> values. A candidate takes one of each; what is not named here keeps its default."""

THRESHOLDS = (0.01, 0.025, 0.05, 0.10, 0.20, 0.40, 0.80, 1.60, 3.60)


def candidates() -> dict[str, dict[str, Any]]:
    """Name -> fields of `SpeCaConfig`."""
    combinations = itertools.product(*GRID.values())
    return {
        " ".join(f"{field} {value:g}" for field, value in zip(GRID, values, strict=True)): dict(
            zip(GRID, values, strict=True)
        )
        for values in combinations
    }


def settings_of(fields: dict[str, Any]) -> list[Setting]:
    """A candidate's curve, over the threshold."""
    return [SpeCa((*fields.items(), ("threshold", threshold)), family="SpeCa, candidate") for threshold in THRESHOLDS]
