"""An exponential basis instead of Taylor's polynomials: dynamic mode decomposition, as in cache-dit (its `dmd.py`).

The last block's output is taken for the state of a linear system, y_(n+1) = A y_n. A is fitted to the newest six full
calls that stand at equal gaps (Schmid 2010; Prony 1795): singular values under 1e-4 of the largest are dropped, the
rest damped by 1e-8, and the forecast k gaps ahead is Phi lambda^k b, each sample for itself. With fewer than four such
calls the forecast is TaylorSeer's of order 1, and a forecast that is not finite repeats the newest call; all of this is
cache-dit's.

Different here, for the better where it was tried: full calls stand at a fixed interval, the first three and the last
among them, where cache-dit's DBCache decides by the change of the first block's residual; and the whole output is
forecast, where DBCache computes the first block in every call and forecasts what the others add to it. The fit is made
in the span of the snapshots, which changes nothing but its cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from . import forecasting
from .base import Method, Run, Setting
from .forecasting import Combined, Planned, TaylorFactors, run_of
from .plans import fixed_interval

HISTORY = 6
LEAST_SNAPSHOTS = 4
CUT = 1e-4
DAMPING = 1e-8
INTERVALS = (2, 3, 4, 5, 6, 8)
SHORT_INTERVALS = (2, 3, 4, 6, 8)

Propagator = Callable[[float], Tensor]
"""k, in gaps ahead -> the state of one sample there, (D,) in double precision."""


def fitted(snapshots: Tensor) -> Propagator:
    """snapshots (D, n) of one sample at equal gaps, oldest first, n >= 2. Raises LinAlgError if they have no fit."""
    q, r = torch.linalg.qr(snapshots.double())  # all that follows lives in the span of the snapshots
    before, after = r[:, :-1], r[:, 1:]
    u, s, vh = torch.linalg.svd(before, full_matrices=False)
    rank = max(int((s > s[0] * CUT).sum()), 1)
    inverse = (vh[:rank].T / (s[:rank] + DAMPING)).to(torch.complex128)
    stepped = after.to(torch.complex128) @ inverse
    values, vectors = torch.linalg.eig(u[:, :rank].T.to(torch.complex128) @ stepped)
    modes = stepped @ vectors
    amplitudes = torch.linalg.lstsq(modes, r[:, -1:].to(torch.complex128)).solution.squeeze(1)
    return lambda k: q @ (modes @ (values**k * amplitudes)).real


class Exponential:
    """A memory of one tensor (B, ...): exponentials through its newest snapshots at equal gaps."""

    def __init__(self) -> None:
        self._taylor = TaylorFactors(1)
        self._snapshots = Combined(lambda times, at: [0.0] * (len(times) - 1) + [1.0], HISTORY)
        self._fits: list[Propagator] | None = None

    def record(self, at: float, tensor: Tensor) -> None:
        self._taylor.record(at, tensor)
        self._snapshots.record(at, tensor)
        self._fits = None

    def forecast(self, at: float) -> Tensor:
        tail, gap = self._equal_gaps()
        if len(tail) < LEAST_SNAPSHOTS:
            return self._taylor.forecast(at)
        newest = tail[-1]
        try:
            if self._fits is None:
                self._fits = [fitted(torch.stack(rows, dim=1)) for rows in zip(*map(_rows, tail), strict=True)]
            ahead = (at - self._snapshots.times[-1]) / gap
            forecast = torch.stack([fit(ahead) for fit in self._fits]).to(newest.dtype).reshape(newest.shape)
        except torch.linalg.LinAlgError:
            return newest.clone()
        return forecast if bool(torch.isfinite(forecast).all()) else newest.clone()

    def _equal_gaps(self) -> tuple[list[Tensor], float]:
        """The newest snapshots, oldest first, as far back as the newest gap repeats itself; and that gap."""
        kept = self._snapshots.kept
        if len(kept) < 2:
            return [tensor for _, tensor in kept], 0.0
        gap = kept[-1][0] - kept[-2][0]
        first = len(kept) - 2
        while first > 0 and kept[first][0] - kept[first - 1][0] == gap:
            first -= 1
        return [tensor for _, tensor in kept[first:]], gap

    @property
    def nbytes(self) -> int:
        return self._snapshots.nbytes + self._taylor.nbytes


def _rows(tensor: Tensor) -> list[Tensor]:
    return list(tensor.flatten(1))


@dataclass(frozen=True)
class ExponentialBasis:
    """The first three calls, every `interval`-th and the last; exponentials between."""

    interval: int
    family: str = "exponential basis"
    one_by_one: bool = False

    @property
    def label(self) -> str:
        return f"interval {self.interval}"

    def fits(self, case: Case) -> bool:
        return case.steps > self.interval + 2

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        plan = fixed_interval(native, self.interval, 3, last=True)
        patched, log = forecasting.attach(
            subject.patcher, "last", lambda: Planned(plan), n_calls=native, make_memory=lambda rule: Exponential()
        )
        return run_of(sample(patched, subject, case, batch), log, native)


def settings(short: bool) -> list[Setting]:
    return [ExponentialBasis(interval) for interval in (SHORT_INTERVALS if short else INTERVALS)]


METHODS = (Method("exponential", "exponential basis (DMD)", settings),)
