"""Before a call: compute it in full, or speculate? Pure; what is decided after the forecast is in `verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .call import Call
from .config import SpeCaConfig
from .draft import can_forecast
from .stream import Stream


@dataclass(frozen=True)
class Situation:
    """What a decision about one sample's next call rests on.

    `calls` made by its youngest stream, whether the anchors of all its streams make a forecast `verifiable`,
    `in_a_row` forecasts accepted since the last full call, `progress` of the run from 0 to 1, the error that the next
    check is expected to find, 0 where nothing is known of it, and whether the last checks were `in_vain`.
    """

    calls: int
    verifiable: bool
    in_a_row: int
    progress: float
    expected_error: float = 0.0
    in_vain: bool = False


@dataclass(frozen=True)
class Decision:
    """`reason` is a code of `events.REASONS`; `limit` the figure it speaks of."""

    action: Literal["full", "speculate"]
    reason: str = ""
    limit: float | None = None


def decide(config: SpeCaConfig, situation: Situation, threshold: float) -> Decision:
    """Full or speculate, and why. Reasons are given in the order in which a person would look for them."""
    if not config.speculates:
        return Decision("full", "threshold_zero")
    if situation.calls < config.warmup_steps:
        return Decision("full", "warm_up")
    if not config.start_percent <= situation.progress <= config.end_percent:
        return Decision("full", "outside_range")
    if not situation.verifiable:
        return Decision("full", "no_anchor")
    if situation.in_a_row >= config.max_consecutive:
        return Decision("full", "run_limit", config.max_consecutive)
    if threshold <= 0:
        return Decision("full", "affordable")
    if situation.in_vain:
        return Decision("full", "in_vain")
    if situation.expected_error > threshold:
        return Decision("full", "expected_over", situation.expected_error)
    return Decision("speculate")


def decide_all(
    config: SpeCaConfig, call: Call, streams: Sequence[Stream], splittable: bool, threshold: float
) -> list[Decision]:
    """One decision per sample; `streams` has one for each row of the call.

    A batch that cannot be taken apart is computed whole as soon as one sample is.
    """
    decisions = [
        decide(config, situation(call, [streams[row] for row in call.rows_of([sample])]), threshold)
        for sample in range(call.n_samples)
    ]
    if not splittable and any(d.action == "full" for d in decisions):
        return [d if d.action == "full" else Decision("full", "with_rejected") for d in decisions]
    return decisions


def situation(call: Call, streams: Sequence[Stream]) -> Situation:
    """Of one sample, by the streams of all its rows."""
    return Situation(
        calls=min(s.calls for s in streams),
        verifiable=all(can_forecast(call, s) for s in streams),
        in_a_row=max(s.in_a_row for s in streams),
        progress=call.progress,
        expected_error=max(expected_error(call, s) for s in streams),
        in_vain=call.renoised and any(s.patience.out for s in streams),
    )


def expected_error(call: Call, stream: Stream) -> float:
    """At least what the next check will find, if the error goes on growing as it did last; 0 if nothing tells.

    It saves checks that are bound to fail: seconds, and 0.2 dB at equal speed; more where others are missing that make
    up for it (`verify.CARRIED_GROWTH`).

    Where the sampler adds noise, noise decides. Nothing is expected while nothing tells which way to trust: the first
    forecast that is thrown away teaches that (`answer.best_direct_shares`).
    """
    if stream.in_a_row == 0 or stream.direct_share is None or call.renoised:
        return 0.0
    return stream.errors.expected(stream.weight(call), call.renoised)


def needs_anchor(config: SpeCaConfig, progress: float) -> bool:
    """Whether a full call at this point can still serve a later forecast; if not, nothing is copied."""
    return config.speculates and progress <= config.end_percent
