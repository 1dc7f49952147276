"""What a run did, counted and timed as it goes, and told to whoever listens."""

from __future__ import annotations

import logging
import statistics
import threading
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import replace

from .call import Call
from .events import CallRecord, Listener, Row, RunHeader, RunRecord, Status, Totals
from .words import summary_line

log = logging.getLogger(__name__)


class Tally:
    """The account of one run: its header, its calls, their totals. Thread-safe."""

    def __init__(self, header: RunHeader, listener: Listener | None = None) -> None:
        self.header = header
        self._listener = listener
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

    def count(
        self, call: Call, rows: Mapping[int, Row], began: float, ended: float, full_seconds: float, cache_bytes: int
    ) -> CallRecord:
        """A call that is answered: what became of each sample, when, how much of it the full computation took, and
        what anchors take now."""
        with self._lock:
            if self._began is None:
                self._began = began
            self._ended = ended
            if all(row.outcome != "accepted" for row in rows.values()):
                self._full_costs[call.kind].append(full_seconds)
            self._call_kinds[call.kind] += 1
            self._seconds_in_calls += ended - began
            self._cache_bytes = max(self._cache_bytes, cache_bytes)
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
        return record

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
        """End the run. Writes one line to the log and tells the listener."""
        with self._lock:
            self._closed = self.record(status)
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
