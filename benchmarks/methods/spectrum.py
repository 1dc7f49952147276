"""Spectrum: "Adaptive Spectral Feature Forecasting for Diffusion Sampling Acceleration", arXiv 2603.01623.

The last block's output as a function of the call is fitted by the first five Chebyshev polynomials (M = 4) over all
full calls so far, with a ridge penalty of 0.1, and full calls stand in gaps that grow linearly from two calls on
(appendix B.1). As in the released code (hanjq17/Spectrum): the run is mapped to [-1, 1] as a whole, the
penalty is on the constant too, and a share of the forecast is the straight line through the last two full calls; the
paper has none, the authors have since recommended half of it. Different here: how fast the gaps grow follows from the
number of full calls that is asked for, and the fit is in full precision, where the code's is in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject
from speca.forecast import newton

from . import forecasting
from .at_speed import AtSpeed
from .base import Method, Run, Setting
from .forecasting import Combined, Planned, run_of
from .plans import calls_for, growing_gaps_of

DEGREE = 4
PENALTY = 0.1
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
SHORT_SPEEDS = (2.0, 3.0, 4.0, 5.0, 6.0)


def chebyshev(
    times: Sequence[float], t: float, n: float, degree: int = DEGREE, penalty: float = PENALTY
) -> list[float]:
    """Weights of the values at `times` in the ridge fit's value at `t`, all in [0, n]."""

    def basis(time: float) -> list[float]:
        tau = 2 * time / n - 1
        values = [1.0, tau]
        for _ in range(2, degree + 1):
            values.append(2 * tau * values[-1] - values[-2])
        return values[: degree + 1]

    design = torch.tensor([basis(time) for time in times], dtype=torch.float64)
    gram = design.T @ design + penalty * torch.eye(degree + 1, dtype=torch.float64)
    return (design @ torch.linalg.solve(gram, torch.tensor(basis(t), dtype=torch.float64))).tolist()


def mixed(times: Sequence[float], t: float, n: float, share: float) -> list[float]:
    """`share` of the fit, the rest of the straight line through the last two."""
    fit, line = chebyshev(times, t, n), newton(times, t, 1)
    return [share * f + (1 - share) * s for f, s in zip(fit, line, strict=True)]


@dataclass(frozen=True)
class Spectrum(AtSpeed):
    """`share` of the forecast is the fit: 1 in the paper, 0.5 recommended since."""

    share: float = 0.5
    least_calls = 4

    @property
    def family(self) -> str:
        return f"Spectrum {self.share:g}"

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        plan = growing_gaps_of(native, calls_for(self.speed, native))
        patched, log = forecasting.attach(
            subject.patcher,
            "last",
            lambda: Planned(plan),
            n_calls=native,
            make_memory=lambda rule: Combined(lambda times, t: mixed(times, t, native, self.share)),
        )
        return run_of(sample(patched, subject, case, batch), log, native)


def settings(short: bool) -> list[Setting]:
    if short:
        return [Spectrum(speed) for speed in SHORT_SPEEDS]
    return [Spectrum(speed, share) for share in (0.5, 1.0) for speed in SPEEDS]


METHODS = (Method("spectrum", "Spectrum", settings),)
