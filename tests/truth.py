"""The truth beside a run: every call of a run with SpeCa is also computed by the network on the very same input.

`told` lists them while it is open; `silent` picks those whose error the check did not see. It knows what
`speca.witness` tells, which it is a reference for, and besides what an error weighs and what was carried before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from speca import comparison
from speca.session import Session
from speca.verify import worst_tensor

TOO_FAR = 3.0
"""A true error of so many times what was judged was not seen, and what costs so many times the threshold is wrong."""


@dataclass(frozen=True)
class Told:
    """One sample of one call: what the session judged and how wrong its answer truly was, relative L2.

    true: of its worst row. cost: the same with its weight, as errors are judged. judged: what the check took `cost`
    for, or what was trusted to be it. carried: what the forecasts before it counted for. All but `true` are None where
    the call was computed.
    """

    outcome: str
    reason: str
    true: float
    sigma: float
    cost: float | None = None
    judged: float | None = None
    carried: float | None = None
    threshold: float | None = None

    @property
    def ratio(self) -> float:
        """Of what the call costs to what it was judged to cost."""
        assert self.cost is not None
        assert self.judged is not None
        return self.cost / max(self.judged, 1e-12)

    @property
    def harmless(self) -> bool:
        """Had the check known the truth, it would have said the same: what the call costs the final picture, with what
        came before it, is within the threshold, as small as its step or as early undone as it is."""
        assert self.threshold is not None
        return self.sum_with_truth <= self.threshold

    @property
    def sum_with_truth(self) -> float:
        """What would have been compared with the threshold, had the check known the truth."""
        assert self.cost is not None
        assert self.carried is not None
        return self.carried + self.cost


@contextmanager
def told() -> Iterator[list[Told]]:
    """Each sample of each call of the sessions that run meanwhile."""
    calls: list[Told] = []
    native = Session.evaluate

    def evaluate(self: Session, call: Any, network: Any) -> Any:
        carried = [stream.errors.carried(call.renoised) for stream in self.streams.of(call)]
        output = native(self, call, network)
        exact = network.full(None, False).output
        errors = worst_tensor("relative_l2", output, exact).tolist()
        weights = [stream.weight(call) for stream in self.streams.of(call)]
        for sample, row in enumerate(self.tally.record().calls[-1].rows):
            rows = call.rows_of([sample])
            true, cost = max(errors[r] for r in rows), max(errors[r] * weights[r] for r in rows)
            found = Told(row.outcome, row.reason, true, call.sigma)
            if row.skipped:
                before = max(carried[r] for r in rows)
                found = Told(row.outcome, row.reason, true, call.sigma, cost, row.error - before, before, row.threshold)
            calls.append(found)
        return output

    Session.evaluate = evaluate  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        Session.evaluate = native  # type: ignore[method-assign]


def forecast(calls: list[Told]) -> list[Told]:
    """Accepted or trusted."""
    return [call for call in calls if call.cost is not None]


def silent(calls: list[Told]) -> list[Told]:
    """Forecast, with a cost of over `TOO_FAR` times what was judged, and not `harmless`."""
    return [call for call in forecast(calls) if not call.ratio <= TOO_FAR and not call.harmless]


def psnr(picture: Tensor, reference: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    return comparison.psnr(comparison.mean_square(picture[None], reference[None]).item() / 4)
