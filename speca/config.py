"""Everything a person can choose about a run, validated once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from .forecast import FORECASTERS, MAX_ORDER
from .verify import ERROR_METRICS

CACHE_DEVICES = ("auto", "gpu", "cpu")

MODES: dict[str, float | None] = {
    "threshold": None,
    "speed": None,
    "Faithful 1.5x": 1.5,
    "Balanced 2x": 2.0,
    "Fast 3x": 3.0,
    "Draft 5x": 5.0,
}
"""What decides how much is computed: the threshold, the speed that is asked for, or a name for one."""


@dataclass(frozen=True)
class SpeCaConfig:
    """The settings of one SpeCa node.

    mode: one of `MODES`. In all but "threshold" the run has the time that its speed leaves it, and the threshold of
        each call follows from that (`budget`); `threshold` and `threshold_end_factor` do not count then.
    target_speedup: the speed that is asked for in mode "speed", measured in wall-clock.
    threshold: the relative error at which a forecast is thrown away, at the start of the run; 0 computes every call.
        Errors are weighted by what they cost the final picture, in one unit for all models (`schedule.error_weights`),
        so that a threshold means much the same on each.
    order: the highest polynomial order of the forecast, 0 (reuse) to 4.
    threshold_end_factor: the threshold's factor at the end of the run, the paper's beta (section 3.3). The paper has
        beta < 1, stricter late; the weights say already where errors cost more, and why.
    accumulate_error: compare the sum of the errors since the last full call, not each error alone (the paper's rule).
    warmup_steps: the first calls of each stream that are always computed. From one computed call the model can only be
        repeated, in what its blocks add to each call's own latent; where that is not known, a second is computed
        whatever is set here.
    max_consecutive: the most forecasts in a row.
    check_every: of the forecasts in a row, each so-many-th is checked; those between are trusted where the last check
        leaves room for the error to be expected of them (`policy.trusted_error`). 1 checks every one.
    start_percent, end_percent: the part of the run's steps, 0 to 1, in which forecasts are allowed.
    error_metric: one of `verify.ERROR_METRICS`.
    forecaster: one of `forecast.FORECASTERS`.
    cache_device: where the anchors are kept: "gpu" (the model's device), "cpu", or "auto" (by free memory).
    noise_gain_limit: the largest sum of |weights| of a forecast; a forecast that would exceed it goes up in order
        only as far as the limit allows.

    Of warm-ups, orders and check_every 1 and 2, every model left out is given 1, 2 and 2 by the others; what another
    choice is worth stands in the same file (benchmarks/results/left-out.md, euler).
    """

    threshold: float = 0.08
    order: int = 2
    threshold_end_factor: float = 1.0
    accumulate_error: bool = True
    warmup_steps: int = 1
    max_consecutive: int = 10
    check_every: int = 2
    start_percent: float = 0.0
    end_percent: float = 1.0
    error_metric: str = "relative_l2"
    forecaster: str = "newton"
    cache_device: str = "auto"
    noise_gain_limit: float = 3.0
    mode: str = "threshold"
    target_speedup: float = 3.0

    def __post_init__(self) -> None:
        _within("threshold", self.threshold, 0.0, float("inf"))
        _within("order", self.order, 0, MAX_ORDER)
        _within("threshold_end_factor", self.threshold_end_factor, 1e-3, 1e3)
        _within("warmup_steps", self.warmup_steps, 1, 1000)
        _within("max_consecutive", self.max_consecutive, 1, 1000)
        _within("check_every", self.check_every, 1, 1000)
        _within("start_percent", self.start_percent, 0.0, 1.0)
        _within("end_percent", self.end_percent, 0.0, 1.0)
        _within("noise_gain_limit", self.noise_gain_limit, 1.0, float("inf"))
        if self.start_percent >= self.end_percent:
            raise ValueError(
                f"start_percent ({self.start_percent}) must be below end_percent ({self.end_percent}); "
                "to compute every call set threshold to 0 instead"
            )
        _one_of("error_metric", self.error_metric, ERROR_METRICS)
        _one_of("forecaster", self.forecaster, FORECASTERS)
        _one_of("cache_device", self.cache_device, CACHE_DEVICES)
        _one_of("mode", self.mode, MODES)
        _within("target_speedup", self.target_speedup, 1.0, 100.0)

    @property
    def speed(self) -> float | None:
        """The speed that is asked for; None in threshold mode."""
        return self.target_speedup if self.mode == "speed" else MODES[self.mode]

    @property
    def speculates(self) -> bool:
        """Whether any call may be forecast."""
        return self.threshold > 0 if self.speed is None else self.speed > 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; type a number from {low:g} to {high:g}")


def _one_of(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}")
