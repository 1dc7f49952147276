"""How wrong the forecasts of a run truly are that stand: the network beside it, in full, on the very same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .call import Network, Tensors
from .clock import RunClock
from .events import CallRecord
from .verify import worst_tensor


@dataclass(frozen=True)
class TrueError:
    """One forecast sample of one call. Both errors are of that call alone, by the run's own metric.

    judged: what the check took it for, or what was trusted to be its error. true: the answer against the network's own,
        of the sample's worst row.
    """

    sample: int
    judged: float
    true: float


class Witness:
    """Sees one run's calls that were forecast, at the price of a full call of the network for each.

    seen: by the call's number in the run. clock: the run's own, which stands still meanwhile.
    metric: of `verify.ERROR_METRICS`.
    """

    def __init__(self, metric: str, clock: RunClock | None = None) -> None:
        self.seen: dict[int, tuple[TrueError, ...]] = {}
        self.clock = clock or RunClock()
        self._metric = metric
        self._tell: Callable[[CallRecord], None] = lambda call: None

    def tells(self, tell: Callable[[CallRecord], None]) -> None:
        """`tell` is given each call that was seen, its true errors in its rows."""
        self._tell = tell

    def see(self, call: CallRecord, n_samples: int, judged: Sequence[float], output: Tensors, network: Network) -> None:
        """judged: of each row of the batch. output: what the sampler is given, (B, ...) per tensor."""
        with self.clock.stopped():
            exact = network.full(None, False).output
            by_row = worst_tensor(self._metric, output, exact).tolist()
        errors = {
            row.sample: TrueError(
                row.sample, max(judged[row.sample :: n_samples]), max(by_row[row.sample :: n_samples])
            )
            for row in call.rows
            if row.skipped
        }
        self.seen[call.call] = tuple(errors.values())
        rows = (
            replace(row, judged=errors[row.sample].judged, true=errors[row.sample].true)
            if row.sample in errors
            else row
            for row in call.rows
        )
        self._tell(replace(call, rows=tuple(rows)))
