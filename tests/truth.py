"""The truth beside a run: every call of a run with SpeCa is also computed by the network on the very same input.

`told` lists them while it is open; `wrong` picks those that were accepted with a true error over .3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speca.session import Session
from speca.verify import relative_l2

WRONG = 0.3


@dataclass(frozen=True)
class Told:
    """One sample of one call: what the session judged and how wrong its answer truly was, relative L2."""

    outcome: str
    reason: str
    judged: float | None
    true: float
    sigma: float


@contextmanager
def told() -> Iterator[list[Told]]:
    """Each sample of each call of the sessions that run meanwhile, with the error of its worst row."""
    calls: list[Told] = []
    native = Session.evaluate

    def evaluate(self: Session, call: Any, network: Any) -> Any:
        output = native(self, call, network)
        exact = network.full(None, False).output
        errors = relative_l2(output[0], exact[0]).reshape(-1, call.n_samples).amax(dim=0).tolist()
        for row, error in zip(self.tally.record().calls[-1].rows, errors, strict=True):
            calls.append(Told(row.outcome, row.reason, row.error, error, call.sigma))
        return output

    Session.evaluate = evaluate  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        Session.evaluate = native  # type: ignore[method-assign]


def accepted(calls: list[Told]) -> list[Told]:
    return [call for call in calls if call.outcome == "accepted"]


def wrong(calls: list[Told]) -> list[Told]:
    return [call for call in accepted(calls) if not call.true <= WRONG]


def psnr(picture: Tensor, reference: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    error = torch.mean((picture.double() - reference.double()) ** 2).item()
    return math.inf if error == 0 else 10 * math.log10(4 / error)
