"""What a run did, counted and timed as it goes, and told to whoever listens."""

from __future__ import annotations

import logging
import statistics
import threading
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from .budget import Prices, why_missed
from .call import Call
from .events import NOT_ALLOWED, CallRecord, Listener, Plan, Row, RunHeader, RunRecord, Spending, Status, Totals
from .words import summary_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Allowance:
    """The time in which a run ends at the speed asked for, what is left of it, and what would be left if every call had
    taken what such calls usually take."""

    seconds: float
    left: float
    usually_left: float


class Tally:
    """The account of one run: its header, its calls, their totals. Thread-safe."""

    def __init__(self, header: RunHeader, listener: Listener | None = None, speed: float | None = None) -> None:
        """speed: what is asked for, in speed mode."""
        self.header = header
        self._speed = speed
        self._plan: Plan | None = None
        self._missed: str | None = None
        self._kept_at: float | None = None
        self._listener = listener
        self._calls: list[CallRecord] = []
        self._full_costs: dict[Hashable, list[float]] = defaultdict(list)
        self._check_costs: list[float] = []
        self._trust_costs: list[float] = []
        self._in_part = 0.0  # seconds in which some of a call's samples were computed
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
        self,
        call: Call,
        rows: Mapping[int, Row],
        began: float,
        ended: float,
        full_seconds: float,
        cache_bytes: int,
        plan: Plan | None = None,
    ) -> CallRecord:
        """A call that is answered: what became of each sample, when, how much of it the full computation took, what
        anchors take now, and in speed mode the plan for the calls that follow."""
        with self._lock:
            self._plan = plan
            if self._began is None:
                self._began = began
            self._ended = ended
            if not any(row.skipped for row in rows.values()):
                self._full_costs[call.kind].append(full_seconds)
            else:
                self._in_part += full_seconds
            if any(row.checked for row in rows.values()):
                self._check_costs.append(ended - began - full_seconds)
            elif all(row.skipped for row in rows.values()):
                self._trust_costs.append(ended - began)
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

    def amend(self, call: CallRecord) -> None:
        """A call that was counted, with what has become known of it since."""
        with self._lock:
            self._calls[call.call] = call
            totals = self.totals()
        self._tell("call_made", self.header, call, totals)

    def totals(self) -> Totals:
        """Counts so far. A call counts as its dearest outcome: one rejected sample makes it a rejected call."""
        with self._lock:
            seconds = self._seconds
            return Totals(
                calls=len(self._calls),
                full=self._outcomes["full"],
                accepted=self._outcomes["accepted"],
                trusted=self._outcomes["trusted"],
                rejected=self._outcomes["rejected"],
                seconds=seconds,
                speedup=self._speedup(seconds),
                cache_bytes=self._cache_bytes,
                spending=self._spending(),
            )

    def _spending(self) -> Spending | None:
        if self._speed is None or self._plan is None:
            return None
        allowance = self.allowance(self._speed, self._plan.calls)
        return Spending(self._speed, allowance.seconds, allowance.left, self._plan, self._kept_at, self._missed)

    def _usual_threshold(self) -> float | None:
        """The median of those that forecasts were kept at."""
        kept = [row.threshold for call in self._calls for row in call.rows if row.skipped and row.threshold is not None]
        return statistics.median(kept) if kept else None

    def _why_missed(self) -> str | None:
        if self._speed is None or not self._full_costs or self.header.native is not None:
            return None
        forced = sum(any(row.reason in NOT_ALLOWED for row in call.rows) for call in self._calls)
        rejected = self._outcomes["rejected"]
        got = self._speedup(self._seconds)
        lost = self._seconds_in_calls - self._usual()
        return why_missed(self._speed, got, self.prices(), len(self._calls), forced, rejected, lost)

    def _speedup(self, seconds: float) -> float | None:
        """Wall-clock: what the run would have taken uncached, over what it took from its first call to its last,
        forecasts, verifications and rejections included. What it took beyond the usual price of its calls (the first
        has something to set up, the machine does something else) it would have taken uncached too."""
        if not self._full_costs or seconds <= 0:
            return None
        return (seconds - self._usual() + self._computed()) / seconds

    def _computed(self) -> float:
        """Seconds that the calls so far would usually take, all computed in full."""
        return sum(n * self._price(kind) for kind, n in self._call_kinds.items())

    def _usual(self) -> float:
        """Seconds that the calls so far usually take, as they were made."""
        computed = sum(len(costs) * self._price(kind) for kind, costs in self._full_costs.items())
        forecast = sum(
            len(costs) * statistics.median(costs) for costs in (self._check_costs, self._trust_costs) if costs
        )
        return computed + self._in_part + forecast

    def _price(self, kind: Hashable) -> float:
        """Seconds of one computed call. A lower median, for of a few calls it is the first that has something to set
        up; of all kinds' where none of this one was computed."""
        costs = self._full_costs.get(kind) or [cost for costs in self._full_costs.values() for cost in costs]
        return statistics.median_low(costs)

    def prices(self) -> Prices:
        """Of calls, in seconds, by what was measured so far; before anything was, in computed calls. One in so many
        forecasts goes unchecked as did so far."""
        with self._lock:
            if not self._full_costs:
                return Prices(1.0, 1.0 / max(self.header.n_blocks, 1))
            n, checked, trusted = len(self._calls), self._check_costs, self._trust_costs
            full = self._computed() / n
            # That a check is one block's work counts as if it had been measured once: if the first takes long, there
            # would be no second to show that others do not.
            forecast = statistics.median_low([full / max(self.header.n_blocks, 1), *checked])
            if trusted:
                of_trusted = len(trusted) * statistics.median_low(trusted)
                forecast = (len(checked) * forecast + of_trusted) / (len(checked) + len(trusted))
            return Prices(full, forecast, (self._seconds - self._seconds_in_calls) / n)

    def allowance(self, speed: float, calls_left: int) -> Allowance:
        """In the unit of `prices`."""
        with self._lock:
            if not self._full_costs:
                left = calls_left / speed
                return Allowance(len(self._calls) / speed + left, left, left)
            outside = self._seconds - self._seconds_in_calls
            usually = (outside + self._computed() + self.prices().uncached(calls_left)) / speed
            allowed = usually + (self._seconds_in_calls - self._usual()) / speed
            return Allowance(allowed, allowed - self._seconds, usually - outside - self._usual())

    @property
    def _seconds(self) -> float:
        return self._ended - self._began if self._began is not None else 0.0

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
            self._missed = self._why_missed() if status == "finished" else None
            self._kept_at = self._usual_threshold()
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
