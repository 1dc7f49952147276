"""Frozen records of a model call and of a sampling run, and their versioned JSON.

This is the one description of what SpeCa says about a run. The log line, the report node, the route and the
panel all read these records; `web/reducer.js` reads the JSON. A reader ignores keys it does not know; a field
that changes meaning raises `VERSION`.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

VERSION = 1

Outcome = Literal["full", "accepted", "trusted", "rejected"]
"""Of one sample in one call: computed; forecast, and the forecast kept that was checked, or that was not checked;
forecast, checked and computed after all."""
Status = Literal["running", "finished", "interrupted", "failed"]

# A live event stays under 1 KB: rows beyond this many are counted (`n_samples`) but not listed.
MAX_ROWS_PER_EVENT = 8
MAX_PLANNED_SHOWN = 64


# One sentence per reason code. `{error}`, `{threshold}` and `{limit}` are the row's own figures.
REASONS: dict[str, str] = {
    "threshold_zero": "threshold 0: every call is computed",
    "warm_up": "warm-up",
    "outside_range": "outside the chosen part of the run",
    "run_limit": "{limit:g} forecasts in a row",
    "expected_over": "an error of about {limit:.3g} was expected, over the threshold",
    "in_vain": "the last checks led nowhere; the next one waits",
    "affordable": "enough time is left to compute it",
    "no_anchor": "too few computed steps to forecast from and to check with",
    "shape_changed": "the shape of the features changed",
    "not_possible": "a forecast is not possible in this call",
    "within": "error {error:.3g} within {threshold:.3g}",
    "unchecked": "not checked; an error of about {error:.3g} was expected, within {threshold:.3g}",
    "over": "error {error:.3g} over {threshold:.3g}",
    "not_finite": "the forecast held values that are not finite",
    "with_rejected": "computed together with a rejected sample",
    "with_conditioning": "computed as the sample's other conditioning was: guidance takes their difference",
}

NOT_ALLOWED = frozenset({"warm_up", "outside_range", "run_limit", "no_anchor", "shape_changed", "not_possible"})
"""Why a call was computed that no threshold could have saved."""


@dataclass(frozen=True)
class Row:
    """What happened to one sample in one call.

    `error` and `threshold` are dimensionless ratios; `error` is None where nothing was forecast, only what was expected
    where a forecast was trusted, and infinite where it was not a number. `limit` is the figure a reason speaks of (8 in
    "8 in a row"). Where a witness saw the call (`witness`), `judged` is what the check took this call's own error for,
    and `true` what it was; both before weights and sums. `tensors` is what `error` would be by each of the outputs
    alone, where a network has several (picture and sound); the worst of them decides.
    Reasons are codes, put into words by `REASONS` here and by the locales of the panel.
    """

    sample: int
    outcome: Outcome
    reason: str
    error: float | None = None
    threshold: float | None = None
    limit: float | None = None
    judged: float | None = None
    true: float | None = None
    tensors: tuple[float, ...] = ()

    @property
    def skipped(self) -> bool:
        """Whether a forecast stands in the place of what the network would have computed."""
        return self.outcome in ("accepted", "trusted")

    @property
    def checked(self) -> bool:
        """Whether a forecast was made and held against the network's last block."""
        return self.error is not None and self.outcome != "trusted"

    @property
    def figures(self) -> dict[str, float]:
        """Those that are known, by name."""
        named = {
            "error": self.error,
            "threshold": self.threshold,
            "limit": self.limit,
            "judged": self.judged,
            "true": self.true,
        }
        return {name: value for name, value in named.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        figures: dict[str, Any] = {name: _finite(value) for name, value in self.figures.items()}
        if self.tensors:
            figures["tensors"] = [_finite(value) for value in self.tensors]
        return {"sample": self.sample, "outcome": self.outcome, "reason": self.reason, **figures}


@dataclass(frozen=True)
class CallRecord:
    """One evaluation of the network by the sampler.

    `step` counts the schedule's intervals from 0, `sigma` is the call's noise level, `conds` the parts of the
    guidance in this call as ComfyUI numbers them (0 positive, 1 negative), `ms` the wall-clock milliseconds of the
    whole call; `full_ms` of it went into computing the network in full.
    """

    call: int
    step: int
    sigma: float
    conds: tuple[int, ...]
    ms: float
    full_ms: float
    rows: tuple[Row, ...]
    window: int | None = None

    @property
    def outcome(self) -> Outcome:
        """The call's dearest outcome: rejected over full over accepted over trusted."""
        dearest_first = ("rejected", "full", "accepted", "trusted")
        return min((row.outcome for row in self.rows), key=dearest_first.index, default="accepted")

    def to_json(self, max_rows: int | None = None) -> dict[str, Any]:
        record: dict[str, Any] = {
            "call": self.call,
            "step": self.step,
            "sigma": _finite(self.sigma),
            "conds": list(self.conds),
            "ms": round(self.ms, 3),
            "full_ms": round(self.full_ms, 3),
            "outcome": self.outcome,
            "n_samples": len(self.rows),
            "rows": [row.to_json() for row in self.rows[:max_rows]],
        }
        if self.window is not None:
            record["window"] = self.window
        return record


@dataclass(frozen=True)
class Plan:
    """Where the time of a run in speed mode is to go, as it stood at the last call.

    calls: that are left. computed: of them, those that can be paid for, computed in full. ahead: which of the columns
    that follow will be, 1 for the next; a column is one evaluation of the sampler.
    """

    calls: int
    computed: float
    ahead: tuple[int, ...] = ()


@dataclass(frozen=True)
class Spending:
    """Of a run in speed mode: the speed asked for, the seconds that leaves the run, those that are left, and the plan.

    `threshold` is the median of those that its forecasts were kept at, once it has ended, or None. The picture is about
    as good as with that one fixed: by 0.1 dB less, give or take 5, over 108 runs of six of the zoo's models.
    `missed` says in one sentence why the run did not end at that speed, once it has ended, or is None.
    """

    target: float
    seconds: float
    left: float
    plan: Plan
    threshold: float | None = None
    missed: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "seconds": round(self.seconds, 4),
            "left": round(self.left, 4),
            "computed": round(self.plan.computed, 2),
            "plan": list(self.plan.ahead[:MAX_PLANNED_SHOWN]),
            "threshold": None if self.threshold is None else round(self.threshold, 4),
            "missed": self.missed,
        }


@dataclass(frozen=True)
class Totals:
    """Sums over a run's calls. `speedup` is measured wall-clock and None until a full call has been timed.

    `spending` is of a run in speed mode.
    """

    calls: int
    full: int
    accepted: int
    trusted: int
    rejected: int
    seconds: float
    speedup: float | None
    cache_bytes: int
    spending: Spending | None = None

    def to_json(self) -> dict[str, Any]:
        speedup = None if self.speedup is None else round(self.speedup, 3)
        rounded = {**asdict(self), "seconds": round(self.seconds, 4), "speedup": speedup}
        del rounded["spending"]
        return rounded if self.spending is None else {**rounded, "spending": self.spending.to_json()}


@dataclass(frozen=True)
class Origin:
    """Where a run belongs: the prompt, the SpeCa node (execution id, "12:5" inside a subgraph), the sampling node."""

    prompt_id: str | None = None
    workflow_id: str | None = None
    node_id: str | None = None
    sampler_node_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RunHeader:
    """What is known of a run when it starts. `native` says in one sentence why nothing will be skipped, or is None;
    `note` what else a person should know of the run."""

    settings: Mapping[str, Any]
    model: str
    architecture: str | None
    experimental: bool
    n_blocks: int
    steps: int
    sampler: str
    n_samples: int
    origin: Origin = Origin()
    native: str | None = None
    note: str | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started_at: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """Its fields, the origin's among them."""
        fields = {**asdict(self), "started_at": round(self.started_at, 3)}
        return {**fields.pop("origin"), **fields}


@dataclass(frozen=True)
class RunRecord:
    """A run so far, or a whole one: its header, its calls and their totals."""

    header: RunHeader
    status: Status
    calls: tuple[CallRecord, ...]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            **self.header.to_json(),
            "status": self.status,
            "totals": self.totals.to_json(),
            "calls": [call.to_json() for call in self.calls],
        }


class Listener(Protocol):
    """Is told of a run while it happens, on the sampling thread: must return at once and never raise.

    A call that is told again has become known better (its true errors).
    """

    def run_started(self, header: RunHeader) -> None: ...

    def call_made(self, header: RunHeader, call: CallRecord, totals: Totals) -> None: ...

    def run_ended(self, record: RunRecord) -> None: ...


def run_started(header: RunHeader) -> dict[str, Any]:
    """The event that opens a run in the panel."""
    return {"version": VERSION, "type": "run_started", **header.to_json()}


def calls_made(header: RunHeader, calls: list[CallRecord], totals: Totals) -> dict[str, Any]:
    """The event for one call, or for several that came faster than they are worth sending one by one."""
    return {
        "version": VERSION,
        "type": "calls",
        "run_id": header.run_id,
        **header.origin.to_json(),
        "calls": [call.to_json(MAX_ROWS_PER_EVENT) for call in calls],
        "totals": totals.to_json(),
    }


def run_ended(record: RunRecord) -> dict[str, Any]:
    """The event that closes a run; `native` may have become known only while it ran."""
    return {
        "version": VERSION,
        "type": "run_ended",
        "run_id": record.header.run_id,
        **record.header.origin.to_json(),
        "status": record.status,
        "native": record.header.native,
        "totals": record.totals.to_json(),
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN: both become None. Four significant digits are what a person can use."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
