"""Before a call: compute it in full, speculate, or trust a forecast? Pure; what is decided after the forecast is in
`verify`.

Every forecast rests on the same anchors as the one before it, so what a check found holds for the next one too, but for
how much farther that reaches. Where it stays within the threshold, the next check would be paid for to hear the same:
the call is answered without running any of the network, and the check after it sees where that has led. A check is one
block's work, of 26 to 60; on a card what lies around the block takes as long again.
"""

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
    `in_a_row` forecasts kept since the last full call, `progress` of the run from 0 to 1, the error that the next
    check is expected to find, and what the last ones found, if they were `in_vain`; 0 where nothing is known of it; and
    the error to be `trusted` if the next forecast is not checked, None where it has to be.
    """

    calls: int
    verifiable: bool
    in_a_row: int
    progress: float
    expected_error: float = 0.0
    in_vain: float = 0.0
    trusted: float | None = None


Action = Literal["trust", "speculate", "full"]
DOUBTS: tuple[Action, ...] = ("trust", "speculate", "full")
"""What may be done with a call, the most trusting first."""


@dataclass(frozen=True)
class Decision:
    """`reason` is a code of `events.REASONS`; `limit` the figure it speaks of."""

    action: Action
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
    if situation.in_vain > threshold:
        return Decision("full", "in_vain")
    if situation.expected_error > threshold:
        return Decision("full", "expected_over", situation.expected_error)
    if situation.trusted is not None and situation.trusted <= threshold:
        return Decision("trust", "unchecked", situation.trusted)
    return Decision("speculate")


def decide_all(
    config: SpeCaConfig, call: Call, streams: Sequence[Stream], splittable: bool, threshold: float
) -> list[Decision]:
    """One decision per sample; `streams` has one for each row of the call.

    A batch that cannot be taken apart is computed whole as soon as one sample is, and checked whole.
    """
    decisions = [
        decide(config, situation(config, call, [streams[row] for row in call.rows_of([sample])]), threshold)
        for sample in range(call.n_samples)
    ]
    return decisions if splittable else _alike(decisions)


def _alike(decisions: Sequence[Decision]) -> list[Decision]:
    """For samples that go together: what one of them needs, all get."""
    if any(d.action == "full" for d in decisions):
        return [d if d.action == "full" else Decision("full", "with_rejected") for d in decisions]
    if any(d.action == "speculate" for d in decisions):
        return [Decision("speculate")] * len(decisions)
    return list(decisions)


def situation(config: SpeCaConfig, call: Call, streams: Sequence[Stream]) -> Situation:
    """Of one sample, by the streams of all its rows."""
    trusting = (
        not call.renoised  # the past knows nothing of the latent's noise
        and not call.schedule.ends_at(call.step)  # nothing puts right what the last call gets wrong
        and all(s.trusting(config.check_every) for s in streams)
    )
    return Situation(
        calls=min(s.calls for s in streams),
        verifiable=all(can_forecast(call, s) for s in streams),
        in_a_row=max(s.in_a_row for s in streams),
        progress=call.progress,
        expected_error=max(expected_error(call, s) for s in streams),
        in_vain=max(s.patience.found for s in streams),
        trusted=max(trusted_error(call, s) for s in streams) if trusting else None,
    )


def expected_error(call: Call, stream: Stream) -> float:
    """At least what the next check will find, if the error goes on growing as it did last; 0 if nothing tells.

    It saves checks that are bound to fail: seconds, and 0.4 dB at equal speed; more where others are missing that make
    up for it (`verify.CARRIED_GROWTH`).

    Where the sampler adds noise, noise decides.
    """
    if stream.in_a_row == 0 or call.renoised:
        return 0.0
    return stream.errors.expected(stream.weight(call), call.renoised)


def trusted_error(call: Call, stream: Stream) -> float:
    """The sum of errors after a forecast that is not checked, by what the last check found and how far each reaches.

    Taken to grow by a fifth, as sums do, it is 0.5 dB better at equal speed on six of the zoo's models; but 1.4 % of
    what is forecast in situations of real use are then wrong in silence (benchmarks/results/truth.md has how many are).
    """
    return stream.errors.expected(stream.weight(call), call.renoised, stream.farther(call))


def needs_anchor(config: SpeCaConfig, progress: float) -> bool:
    """Whether a full call at this point can still serve a later forecast; if not, nothing is copied."""
    return config.speculates and progress <= config.end_percent
