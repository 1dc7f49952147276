"""One sampling run: its streams, its decisions, its counts.

A *stream* is one sample under one conditioning; all state is per stream, and a new run makes a new `Session`. The
session knows nothing of ComfyUI or of architectures: it drives a `Network`, which can compute a call in full or run
its last block and head on given features.
"""

from __future__ import annotations

import logging
import math
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .config import NOISE_GAIN_LIMIT, SpeCaConfig
from .events import REASONS, CallRecord, Listener, Row, RunHeader, RunRecord, Status, Totals
from .forecast import Forecast, forecast_weights, reuse
from .history import Anchor, History, Latent, Tensors
from .policy import Decision, Situation, decide, needs_anchor
from .verify import ERROR_METRICS, judge, likely_error, threshold_at

log = logging.getLogger(__name__)

# Where the sampler adds noise, anchors differ by more than time: a forecast may amplify them less. On the small FLUX
# and DiT with dpmpp_2m_sde, 2 is 1 dB better at 2x than 3.5.
RENOISED_NOISE_GAIN_LIMIT = 2.0

# A sum of errors grows from one forecast to the next: a wrong output moves the latent, and the next forecast is checked
# as if it had not. Not where the sampler adds noise, which drowns it. 1.1 to 1.4 are alike on the small DiT and FLUX
# (benchmarks/README.md, "How wrong is likely").
CARRIED_GROWTH = 1.2

# Below this spread a model's output is mostly its latent's own noise, a hundredth of which is as large as the picture.
# The spread is 1 and more for flow matching, about 1 / sigma for EPS. So where a run begins with a smaller one:
# - A lone anchor, which can only be repeated, is repeated in what does not follow from the latent.
# - Forecasts of features hold OWN_SHARE of the call's own embedded latent in the place of the forecast one. Forecast as
#   a whole, they know nothing of where the latent has drifted; with all of it, the last block takes the drift for
#   noise, which the skipped blocks would have told apart.
# - DIRECT_SHARE of each answer is the direct forecast, until a rejection shows what is right for this run.
# (benchmarks/README.md, "The first calls" and "Where noise is predicted")
MOSTLY_NOISE_SPREAD = 0.5
OWN_SHARE = 0.4
DIRECT_SHARE = 0.4

ANCHORS_TO_FORECAST = 2


class ForecastImpossibleError(Exception):
    """Raised by a `Network` that cannot run on the forecast features; the call is then computed in full."""

    def __init__(self, reason: str = "not_possible") -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Exact:
    """What a full call computed: the features entering the verification block and the output, (R, ...) each.

    `embedded` is what would have entered that block without the blocks before it. It and `features` are copies for the
    session to keep; None where they were not asked for or not to be had.
    """

    features: Tensors | None
    output: Tensors
    embedded: Tensors | None = None


class Network(Protocol):
    """The network bound to one call's inputs, (B, ...). `rows` picks R of the B rows; None takes all as they are.

    `speculate` puts the features on a share of the embedded input: one of `own_shares` for each of the R rows, or none.
    """

    splittable: bool
    device: torch.device

    def full(self, rows: Sequence[int] | None, keep_features: bool, keep_embedded: bool = False) -> Exact: ...

    def speculate(self, features: Tensors, rows: Sequence[int] | None, own_shares: Sequence[float] = ()) -> Tensors: ...


@dataclass(frozen=True)
class Call:
    """One evaluation of the network, as the sampler asks for it.

    time: what the network itself is told of the noise level; anchors and forecasts live on this axis.
    streams: one key per row of the batch; row r holds sample `r % n_samples`, so a sample has a row per conditioning.
    kind: calls of one kind cost the same (shape of the batch); used to price a call that was not computed in full.
    weight: what an error at this call costs the final picture, 1 on the run's average (`schedule.error_weights`).
    latent: what the sampler gave, (B, ...); None if it is not one tensor.
    renoised: the sampler adds fresh noise as it goes. The latent holds news then that no anchor can know: features are
        forecast relative to the embedded input, outputs relative to what follows from the latent alone.
    """

    time: float
    sigma: float
    step: int
    progress: float
    n_samples: int
    streams: tuple[Hashable, ...]
    conds: tuple[int, ...] = (0,)
    kind: Hashable = None
    window: int | None = None
    weight: float = 1.0
    latent: Latent | None = None
    renoised: bool = False

    def rows_of(self, samples: Sequence[int]) -> list[int]:
        wanted = set(samples)
        return [row for row in range(len(self.streams)) if row % self.n_samples in wanted]


class _Stream:
    """One stream's state.

    mostly_noise: what the output was at the stream's first call. Later calls may differ, but not the kind of anchors.
    own_share: of the embedded input, which is not in the anchors' features but each call's own.
    """

    def __init__(self, depth: int, mostly_noise: bool) -> None:
        self._depth = depth
        self.history = History(depth)
        self.mostly_noise = mostly_noise
        self.own_share = OWN_SHARE if mostly_noise else 0.0
        self.calls = 0
        self.in_a_row = 0
        self.accumulated = 0.0
        self.added = 0.0
        self.direct_share = DIRECT_SHARE if mostly_noise else None

    def forget(self) -> None:
        self.history = History(self._depth)

    def keep_own(self, share: float) -> None:
        if share != self.own_share:  # features without another share are no anchors of these
            self.own_share = share
            self.forget()

    def expected_error(self, call: Call) -> float:
        """At least what the next check will find, if the error goes on growing as it did last; 0 if nothing tells.

        A forecast reaches farther with each call, so its error grows faster, not slower; but where the sampler adds
        noise, noise decides. Nothing is expected while nothing tells which way to trust: the first forecast that is
        thrown away teaches that (`Session._learn_share`).
        """
        if self.in_a_row == 0 or self.direct_share is None or call.renoised:
            return 0.0
        return _carried(self.accumulated, call) + call.weight * self.added


@dataclass(frozen=True)
class _Part:
    """Rows of a batch and their outputs."""

    rows: Sequence[int]
    output: Tensors


@dataclass(frozen=True)
class _Draft:
    """A speculated output of some rows, reached in two ways: `verified` by the last block and the head, run for real
    on the forecast features; `direct` forecast from past outputs."""

    rows: Sequence[int]
    verified: Tensors
    direct: Tensors


class Session:
    """State and decisions of one run. Thread-safe: ComfyUI may evaluate conditionings on several devices at once.

    place: moves a kept tensor to where anchors live, given its size in bytes with all its future siblings.
    clock: seconds; must wait for the device, or times would say when work was queued, not when it was done.
    """

    def __init__(
        self,
        config: SpeCaConfig,
        header: RunHeader,
        listener: Listener | None = None,
        place: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.header = header
        self._listener = listener
        self._place = place
        self._clock = clock
        self._metric = ERROR_METRICS[config.error_metric]
        self._noise_gain_limit = NOISE_GAIN_LIMIT if config.noise_gain_limit is None else config.noise_gain_limit
        self._depth = max(config.order + 1, ANCHORS_TO_FORECAST)
        self._streams: dict[Hashable, _Stream] = {}
        self._calls: list[CallRecord] = []
        self._full_costs: dict[Hashable, list[float]] = defaultdict(list)
        self._call_kinds: Counter[Hashable] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._seconds_in_calls = 0.0
        self._began: float | None = None
        self._ended = 0.0
        self._cache_bytes = 0
        self._lock = threading.RLock()
        self._closed: RunRecord | None = None
        self._tell("run_started", header)

    # -- a call ------------------------------------------------------------------------------------------------------

    def evaluate(self, call: Call, network: Network) -> Tensors:
        """The call's output, (B, ...) per tensor: accepted forecasts, and full computation for the other samples."""
        began = self._clock()
        samples = range(call.n_samples)
        for key in call.streams:
            stream = self._begin(call, key)
            if call.renoised:
                stream.keep_own(1.0)
        decisions = [decide(self.config, self._situation(call, sample)) for sample in samples]
        if not network.splittable and any(d.action == "full" for d in decisions):
            decisions = [d if d.action == "full" else Decision("full", "with_rejected") for d in decisions]

        rows = {s: Row(s, "full", d.reason, limit=d.limit) for s, d in zip(samples, decisions, strict=True)}
        speculated = [s for s, d in zip(samples, decisions, strict=True) if d.action == "speculate"]
        parts: list[_Part] = []
        draft: _Draft | None = None
        if speculated:
            draft, verdicts = self._speculate(call, network, speculated)
            rows.update(verdicts)
            accepted = [s for s in speculated if rows[s].outcome == "accepted"]
            if not network.splittable and len(accepted) < len(speculated):
                # The batch cannot be taken apart: one sample's rejection computes all of them.
                rows.update({s: replace(rows[s], outcome="full", reason="with_rejected") for s in accepted})
                accepted = []
            if accepted and draft is not None:
                parts.append(self._answer(call, draft, call.rows_of(accepted)))

        computed = [s for s in samples if rows[s].outcome != "accepted"]
        full_seconds = 0.0
        if computed:
            full_began = self._clock()
            exact = self._full(call, network, computed)
            full_seconds = self._clock() - full_began
            parts.append(exact)
            if draft is not None:
                self._learn_share(call, draft, exact)
        output = _join(parts, len(call.streams))
        self._settle(call, rows)
        self._finish(call, rows, began, self._clock(), full_seconds, len(computed) == call.n_samples)
        return output

    def _situation(self, call: Call, sample: int) -> Situation:
        streams = [self._stream(call.streams[row]) for row in call.rows_of([sample])]
        return Situation(
            calls=min(s.calls for s in streams),
            verifiable=all(_is_verifiable(s, call) for s in streams),
            in_a_row=max(s.in_a_row for s in streams),
            progress=call.progress,
            expected_error=max(s.expected_error(call) for s in streams),
        )

    def _begin(self, call: Call, key: Hashable) -> _Stream:
        """The stream of that key, made at its first call."""
        with self._lock:
            if key not in self._streams:
                self._streams[key] = _Stream(self._depth, _is_mostly_noise(call))
            return self._streams[key]

    def _stream(self, key: Hashable) -> _Stream:
        return self._streams[key]

    def _speculate(self, call: Call, network: Network, samples: Sequence[int]) -> tuple[_Draft | None, dict[int, Row]]:
        """Forecast the samples' rows, run the last block and the head on them, and judge each sample."""
        rows = call.rows_of(samples)
        threshold = threshold_at(call.progress, self.config.threshold, self.config.threshold_end_factor)
        try:
            features, direct, other = self._forecast(call, network, rows)
            own = [1.0 if self._repeats_added(call, row) else self._stream(call.streams[row]).own_share for row in rows]
            output = network.speculate(features, None if len(rows) == len(call.streams) else rows, own)
        except ForecastImpossibleError as refused:
            for row in rows:
                self._stream(call.streams[row]).forget()
            return None, {s: Row(s, "full", refused.reason) for s in samples}
        by_row = likely_error(self._error(direct, output), self._error(other, direct))
        # Rows run conditioning by conditioning; a sample is as wrong as its worst row (amax keeps NaN).
        errors = by_row.view(-1, len(samples)).amax(dim=0).tolist()
        verdicts = {}
        for sample, error in zip(samples, errors, strict=True):
            accumulated = max(self._stream(call.streams[row]).accumulated for row in call.rows_of([sample]))
            verdict = judge(call.weight * error, threshold, _carried(accumulated, call))
            if verdict.accepted:
                verdicts[sample] = Row(sample, "accepted", "within", verdict.error, threshold)
            else:
                reason = "over" if math.isfinite(verdict.error) else "not_finite"
                verdicts[sample] = Row(sample, "rejected", reason, verdict.error, threshold)
        return _Draft(rows, output, direct), verdicts

    def _error(self, forecast: Tensors, exact: Tensors) -> Tensor:
        """By the run's metric, (R,): a row is as wrong as the worst of its tensors."""
        return torch.stack([self._metric(f, e) for f, e in zip(forecast, exact, strict=True)]).amax(dim=0)

    def _answer(self, call: Call, draft: _Draft, rows: Sequence[int]) -> _Part:
        """The accepted rows: the verified output, moved towards the direct forecast by each stream's share of it."""
        picked = [draft.rows.index(row) for row in rows]
        shares = [self._stream(call.streams[row]).direct_share or 0.0 for row in rows]
        output = []
        for verified, direct in zip(draft.verified, draft.direct, strict=True):
            if len(picked) < len(draft.rows):
                verified, direct = verified[picked], direct[picked]
            if any(shares):
                weight = torch.tensor(shares, dtype=torch.float32, device=verified.device)
                weight = weight.view(-1, *[1] * (verified.ndim - 1))
                verified = torch.lerp(verified.float(), direct.float(), weight).to(verified.dtype)
            output.append(verified)
        return _Part(rows, tuple(output))

    def _learn_share(self, call: Call, draft: _Draft, exact: _Part) -> None:
        """Where a forecast was thrown away the truth is known: see which way came closer to it.

        The share s in [0, 1] is the least-squares solution of verified + s (direct - verified) = exact. Neither way is
        better for every model: the last block adds what only this call's noise level tells, and passes on the errors
        of features that are larger than their share of the output.
        """
        both = [row for row in draft.rows if row in exact.rows]
        if not both:
            return
        on = gap_on_gap = torch.zeros(len(both), device=exact.output[0].device)
        here, there = [draft.rows.index(row) for row in both], [exact.rows.index(row) for row in both]
        for verified, direct, truth in zip(draft.verified, draft.direct, exact.output, strict=True):
            start = verified[here].float().flatten(1)
            gap = direct[here].float().flatten(1) - start
            on = on + (gap * (truth[there].float().flatten(1) - start)).sum(dim=1)
            gap_on_gap = gap_on_gap + gap.square().sum(dim=1)
        shares = torch.nan_to_num(on / gap_on_gap, nan=0.0).clamp(0.0, 1.0).tolist()
        for row, share in zip(both, shares, strict=True):
            stream = self._stream(call.streams[row])
            # The mean of the new and the old: one call is one noisy sample.
            known = stream.direct_share
            stream.direct_share = share if known is None else (known + share) / 2

    def _forecast(self, call: Call, network: Network, rows: Sequence[int]) -> tuple[Tensors, Tensors, Tensors]:
        """(features entering the verification block, output forecast directly, another guess at it to tell how far the
        forecast reaches), rows joined: (R, ...) per tensor.

        The other guess repeats the newest output; where the forecast itself can do no more than that, with one anchor,
        it follows from the latent. Where a lone anchor's output is mostly noise, the two change places.

        Where the features repeat an anchor, the output must not: the last block on repeated features would find
        little but its own repeated output, and see no error. At order 0 the output is forecast in a straight line; in
        a second call at an anchor's own time (heun), from the latent that has changed since.
        """
        features, outputs, others = [], [], []
        gain_limit = self._noise_gain_limit
        if call.renoised:
            gain_limit = min(gain_limit, RENOISED_NOISE_GAIN_LIMIT)
        for row in rows:
            history = self._stream(call.streams[row]).history
            times = history.times
            forecast = forecast_weights(self.config.forecaster, times, call.time, self.config.order, gain_limit)
            newest = reuse(times, call.time, 0)
            check = self._check(call, history, forecast)
            output = _forecast_output(call, row, history, forecast.weights, check, network.device)
            other = _output_from_latent(call, row, history, newest, network.device) if history.lone else None
            other = other or _forecast_output(call, row, history, newest, newest, network.device)
            if self._repeats_added(call, row):
                features.append(history.repeat_added(network.device))
                output, other = other, output
            else:
                features.append(history.forecast_features(forecast.weights, network.device))
            outputs.append(output)
            others.append(other)
        if len({tuple(t.shape for t in row) for row in features}) > 1:
            raise ForecastImpossibleError("shape_changed")
        return _cat(features), _cat(outputs), _cat(others)

    def _repeats_added(self, call: Call, row: int) -> bool:
        """Whether a lone anchor is repeated in what its blocks added to the embedded input."""
        lone = self._stream(call.streams[row]).history.lone
        return lone is not None and lone.added is not None

    def _check(self, call: Call, history: History, forecast: Forecast) -> Sequence[float]:
        """Weights of an output forecast that is no mere repetition of an anchor."""
        times = history.times
        others = [t for t in times if t != call.time]
        if forecast.order > 0 and len(others) == len(times):
            return forecast.weights
        line = iter(forecast_weights("newton", others, call.time, 1, self._noise_gain_limit).weights)
        return [0.0 if t == call.time else next(line) for t in times]

    def _full(self, call: Call, network: Network, samples: Sequence[int]) -> _Part:
        rows = call.rows_of(samples)
        keep = needs_anchor(self.config, call.progress)
        streams = [self._stream(call.streams[row]) for row in rows]
        relates = any(stream.own_share > 0 or stream.mostly_noise for stream in streams)
        exact = network.full(None if len(rows) == len(call.streams) else rows, keep, keep and relates)
        if keep and exact.features is not None:
            for i, (stream, row) in enumerate(zip(streams, rows, strict=True)):
                self._keep_anchor(call, stream, row, exact, i)
        return _Part(rows, exact.output)

    def _keep_anchor(self, call: Call, stream: _Stream, row: int, exact: Exact, i: int) -> None:
        """Record what `exact` has in its row `i`, which is the batch's `row`."""
        alone = exact.output[0].shape[0] == 1
        features = tuple(f[i : i + 1] for f in exact.features or ())
        embedded = None if exact.embedded is None else tuple(e[i : i + 1] for e in exact.embedded)
        added = None
        if embedded is None:
            if call.renoised:  # the past knows nothing of the latent's noise
                return
            stream.keep_own(0.0)
        elif stream.mostly_noise and not call.renoised and all(t == call.time for t in stream.history.times):
            added = tuple(f - e for f, e in zip(features, embedded, strict=True))
        if embedded is not None and stream.own_share > 0:
            # In the place of what is not needed any more: a video's features are large.
            outs = embedded if alone else [None] * len(features)
            features = tuple(
                torch.sub(f, e, alpha=stream.own_share, out=out)
                for f, e, out in zip(features, embedded, outs, strict=True)
            )
        elif not alone:  # copied apart, or one stream's anchor would hold the memory of the whole batch
            features = tuple(f.clone() for f in features)

        def placed(tensors: Tensors) -> Tensors:
            return tuple(self._place(t) for t in tensors)

        output = tuple(o[i : i + 1].clone() for o in exact.output)
        latent = self._latent_of(call, row, exact.output)
        kept_added = None if added is None else placed(added)
        stream.history.record(Anchor(call.time, placed(features), placed(output), latent, kept_added))

    def _latent_of(self, call: Call, row: int, output: Tensors) -> Latent | None:
        if call.latent is None or [t.shape[1:] for t in output] != [call.latent.x.shape[1:]]:
            return None
        latent = call.latent.row(row)
        return replace(latent, x=self._place(latent.x.clone()))

    def _settle(self, call: Call, rows: dict[int, Row]) -> None:
        """Move the streams on: what was computed starts a new count, what was accepted adds to it."""
        for row_index, key in enumerate(call.streams):
            stream, row = self._stream(key), rows[row_index % call.n_samples]
            stream.calls += 1
            if row.outcome == "accepted":
                stream.in_a_row += 1
                assert row.error is not None
                if call.weight > 0:
                    stream.added = (row.error - _carried(stream.accumulated, call)) / call.weight
                stream.accumulated = row.error if self.config.accumulate_error else 0.0
            else:
                stream.in_a_row = 0
                stream.accumulated = stream.added = 0.0

    # -- counts and times --------------------------------------------------------------------------------------------

    def _finish(
        self, call: Call, rows: dict[int, Row], began: float, ended: float, full_seconds: float, all_full: bool
    ) -> None:
        with self._lock:
            if self._began is None:
                self._began = began
            self._ended = ended
            if all_full:
                self._full_costs[call.kind].append(full_seconds)
            self._call_kinds[call.kind] += 1
            self._seconds_in_calls += ended - began
            self._cache_bytes = max(self._cache_bytes, sum(s.history.nbytes for s in self._streams.values()))
            record = CallRecord(
                call=len(self._calls),
                step=call.step,
                sigma=call.sigma,
                conds=call.conds,
                ms=(ended - began) * 1000,
                full_ms=full_seconds * 1000,
                rows=tuple(rows[s] for s in sorted(rows)),
                window=call.window,
            )
            self._calls.append(record)
            self._outcomes[record.outcome] += 1
            totals = self.totals()
        self._tell("call_made", self.header, record, totals)

    def totals(self) -> Totals:
        """Counts so far. A call counts as its dearest outcome: one rejected sample makes it a rejected call."""
        with self._lock:
            seconds = self._ended - self._began if self._began is not None else 0.0
            return Totals(
                calls=len(self._calls),
                full=self._outcomes["full"],
                accepted=self._outcomes["accepted"],
                rejected=self._outcomes["rejected"],
                seconds=seconds,
                speedup=self._speedup(seconds),
                cache_bytes=self._cache_bytes,
            )

    def _speedup(self, seconds: float) -> float | None:
        """Wall-clock: what the run would have taken, each call at the median cost of its kind's full calls, over what
        it took from its first call to its last, forecasts, verifications and rejections included."""
        if not self._full_costs or seconds <= 0:
            return None
        medians = {kind: statistics.median(costs) for kind, costs in self._full_costs.items()}
        fallback = statistics.median(cost for costs in self._full_costs.values() for cost in costs)
        native = sum(n * medians.get(kind, fallback) for kind, n in self._call_kinds.items())
        return (seconds - self._seconds_in_calls + native) / seconds

    # -- the end -----------------------------------------------------------------------------------------------------

    def record(self, status: Status = "running") -> RunRecord:
        with self._lock:
            return self._closed or RunRecord(self.header, status, tuple(self._calls), self.totals())

    def go_native(self, reason: str) -> None:
        """Note, once, why the rest of the run is computed natively."""
        with self._lock:
            if self.header.native is None:
                self.header = replace(self.header, native=reason)
                log.warning("SpeCa: %s", reason)

    def close(self, status: Status) -> RunRecord:
        """End the run and free the anchors. Writes one line to the log and tells the listener."""
        with self._lock:
            self._closed = self.record(status)
            self._streams.clear()
        log.info("%s", summary_line(self._closed))
        self._tell("run_ended", self._closed)
        return self._closed

    def _tell(self, event: str, *args: object) -> None:
        if self._listener is None:
            return
        try:
            getattr(self._listener, event)(*args)
        except Exception:  # a broken display must never cost a picture; no model call happens in here
            log.warning("SpeCa: the panel could not be told of this run", exc_info=True)
            self._listener = None


def summary_line(record: RunRecord) -> str:
    """`SpeCa: 28 calls: 11 full, 15 accepted, 2 rejected; 2.1x (measured); cache 0.17 GB`, or why nothing was."""
    totals, native = record.totals, record.header.native
    ending = "" if record.status == "finished" else f" ({record.status})"
    if totals.calls == 0:
        return f"SpeCa: native, nothing skipped: {native or 'the model was not called'}{ending}"
    speed = "not measured" if totals.speedup is None else f"{totals.speedup:.1f}x (measured)"
    line = (
        f"SpeCa: {totals.calls} calls: {totals.full} full, {totals.accepted} accepted, {totals.rejected} rejected; "
        f"{speed}; cache {_size(totals.cache_bytes)}{ending}"
    )
    if totals.accepted == 0:
        line += f"; nothing skipped: {native or why_nothing_skipped(record)}"
    return line


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e7 else f"{n_bytes / 1e6:.2g} MB"


def why_nothing_skipped(record: RunRecord) -> str:
    """The reasons of a run without an accepted call, the most frequent first, in words with their last figures."""
    counts: Counter[str] = Counter()
    latest: dict[str, Row] = {}
    for call in record.calls:
        for row in call.rows:
            counts[row.reason] += 1
            latest[row.reason] = row
    return "; ".join(f"{n}x {in_words(latest[reason])}" for reason, n in counts.most_common(3))


def in_words(row: Row) -> str:
    """The row's reason as a person reads it."""
    figures = {"error": row.error, "threshold": row.threshold, "limit": row.limit}
    return REASONS[row.reason].format(**{name: value for name, value in figures.items() if value is not None})


def _carried(accumulated: float, call: Call) -> float:
    """What errors accepted so far count for at `call`."""
    return accumulated if call.renoised else CARRIED_GROWTH * accumulated


def _is_verifiable(stream: _Stream, call: Call) -> bool:
    """Whether the stream's anchors are enough to forecast from and to check with.

    An anchor at the call's own time needs a latent to be of use, and so does a lone one: a repeated output would
    have nothing but itself to be held against.
    """
    history = stream.history
    if call.latent is None:
        return sum(t != call.time for t in history.times) >= ANCHORS_TO_FORECAST
    if history.lone is not None:
        repeatable = history.lone.added is not None or not stream.mostly_noise
        return repeatable and history.has_latents and not call.renoised and history.lone.time != call.time
    return len(history) >= ANCHORS_TO_FORECAST


def _is_mostly_noise(call: Call) -> bool:
    """Whether the call's output is little but the noise of its latent."""
    return call.latent is not None and call.latent.spread < MOSTLY_NOISE_SPREAD


def _forecast_output(
    call: Call, row: int, history: History, weights: Sequence[float], without: Sequence[float], device: torch.device
) -> Tensors:
    """From the latent by `weights`, where it holds what no anchor knows; else from past outputs alone, by `without`."""
    if call.renoised or call.time in history.times:
        from_latent = _output_from_latent(call, row, history, weights, device)
        if from_latent is not None:
            return from_latent
    return history.forecast_output(without, device)


def _output_from_latent(
    call: Call, row: int, history: History, weights: Sequence[float], device: torch.device
) -> Tensors | None:
    return None if call.latent is None else history.forecast_output_from(call.latent.row(row), weights, device)


def _cat(rows: Sequence[Tensors]) -> Tensors:
    return tuple(torch.cat(tensors) if len(tensors) > 1 else tensors[0] for tensors in zip(*rows, strict=True))


def _join(parts: Sequence[_Part], n_rows: int) -> Tensors:
    """The parts' rows in the batch's order. A part that is the whole batch is returned unchanged."""
    if len(parts) == 1 and len(parts[0].rows) == n_rows:
        return parts[0].output
    joined = tuple(t.new_empty((n_rows, *t.shape[1:])) for t in parts[0].output)
    for part in parts:
        for whole, tensor in zip(joined, part.output, strict=True):
            whole[list(part.rows)] = tensor
    return joined
