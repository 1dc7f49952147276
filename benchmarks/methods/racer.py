"""RACER: "Disagree to Accelerate: Closing the Loop on Diffusion Feature Forecasts", arXiv 2608.01740.

Spectrum's forecast h on Spectrum's growing gaps, and beside it, from the same cache, the straight line g through the
last two full calls. The two agree where features move smoothly: r = |h - g| / |h| tells how far h can be trusted. The
answer is a + kappa (h - a), a being the newest full call, with kappa = exp(-decay (ahead - 1)) / (1 + exp(-4 (theta -
r))). Where r is over a limit the call is computed, and the next one that was scheduled is not: full calls stay as many.

Neither the paper's text nor its code (LiZaiyuan0619/RACER) was to be had: written from its abstract, a summary of its
equations and the form of kappa that others took over from it. The constants there were fitted model by model; here
they are those, of a few, that come nearest to the uncached latents on two other samples (not counted as cost). One of
the choices is plain trust, with which RACER is Spectrum. h has half of the straight line in it, as Spectrum's authors
have recommended since; r is of the fit alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from measure.quality import relative_error
from measure.sampling import Batch, Case, sample
from measure.subjects import Subject
from speca.forecast import newton

from . import forecasting
from .at_speed import AtSpeed, at_speeds
from .attachment import RunLog
from .base import Method, Run
from .calibration import key_of, others, trace
from .forecasting import Combined, Decision, run_of
from .plans import Plan, calls_for, growing_gaps_of
from .spectrum import SHORT_SPEEDS, SPEEDS, Spectrum, chebyshev, mixed

STEEPNESS = 4.0
SHARE = 0.5
SHRINKAGES = ((0.0, 3.0), (0.0, 0.4), (0.1, 0.4), (0.3, 0.25))
"""(decay, theta): hardly any, by disagreement alone, and by both; the last is the form that others took over."""
RISKIEST = (0.0, 0.15)
"""Shares of the forecast calls that are over the limit when none is refreshed."""
CALIBRATION_SAMPLES = 2


@dataclass(frozen=True)
class Trust:
    """decay: of the trust with each call ahead. theta: the disagreement at which half of it is left. limit: the
    disagreement from which on a call is computed."""

    decay: float = 0.0
    theta: float = 3.0
    limit: float = math.inf

    def kappa(self, disagreement: float, ahead: float) -> float:
        return math.exp(-self.decay * max(ahead - 1, 0)) / (1 + math.exp(-STEEPNESS * (self.theta - disagreement)))


class Trusted(Combined):
    """Spectrum's forecast over all full calls of a run of `n_calls`, shrunk to the newest of them."""

    def __init__(self, trust: Trust, n_calls: int) -> None:
        super().__init__(lambda times, t: mixed(times, t, n_calls, SHARE))
        self._trust = trust
        self._n_calls = n_calls

    def disagreement(self, at: float) -> float:
        """Of the fit alone and the straight line, over the length of the fit."""
        fit, line = chebyshev(self.times, at, self._n_calls), newton(self.times, at, 1)
        apart = self.combined([f - s for f, s in zip(fit, line, strict=True)]).float().norm()
        return float(apart / (self.combined(fit).float().norm() + 1e-12))

    def forecast(self, at: float) -> Tensor:
        kappa = self._trust.kappa(self.disagreement(at), at - self.times[-1])
        weights = [kappa * weight for weight in self._weigh(self.times, at)]
        weights[-1] += 1 - kappa
        return self.combined(weights)


class Refreshing:
    """The plan's calls; one that is too risky instead of the next of them."""

    def __init__(self, plan: Plan, trust: Trust, n_calls: int) -> None:
        self._scheduled = list(plan)
        self._trust = trust
        self._n_calls = n_calls
        self._memories: list[Trusted] = []

    def memory(self) -> Trusted:
        self._memories.append(Trusted(self._trust, self._n_calls))
        return self._memories[-1]

    def risk(self, call: int) -> float:
        return max(memory.disagreement(call) for memory in self._memories)

    def decide(self, call: int, n_calls: int) -> Decision:
        while self._scheduled and self._scheduled[0] < call:
            self._scheduled.pop(0)
        if call >= n_calls or call in self._scheduled or not self._memories:
            return "full"
        if self._scheduled and self._trust.limit < math.inf and self.risk(call) > self._trust.limit:
            self._scheduled.pop(0)
            return "full"
        return "forecast"

    def observe(self, error: float) -> None:
        raise AssertionError("nothing is checked")


def risks(features: Tensor, plan: Plan) -> list[float]:
    """(N, E) features of an uncached run -> the disagreement at each call that the plan leaves out."""
    memory, found = Trusted(Trust(), len(features)), []
    for call, feature in enumerate(features):
        if call in plan:
            memory.record(call, feature)
        else:
            found.append(memory.disagreement(call))
    return found


def limits(found: Sequence[float]) -> list[float]:
    """The disagreement that each share of `RISKIEST` is over; infinite for none of them."""
    ranked = sorted(found)
    return [ranked[int((1 - share) * len(ranked))] if share * len(ranked) >= 1 else math.inf for share in RISKIEST]


_TRUSTS: dict[object, Trust] = {}


def trust_for(subject: Subject, case: Case, plan: Plan) -> Trust:
    """Of the constants that are tried, those that come nearest to the uncached latents of other samples."""
    key = (key_of(subject, case), plan)
    if key not in _TRUSTS:
        over = dict.fromkeys(limits(risks(trace(subject, case).features, plan)))
        trials = [Trust(*shrinkage, limit) for limit in over for shrinkage in SHRINKAGES]
        singles = others(subject, CALIBRATION_SAMPLES).singles()
        truth = [sample(subject.patcher, subject, case, single).latents for single in singles]

        def error(trust: Trust) -> float:
            patched, _ = attached(subject, trace(subject, case).n_calls, plan, trust)
            made = [sample(patched, subject, case, single).latents for single in singles]
            return sum(sum(relative_error(m, t)) for m, t in zip(made, truth, strict=True))

        _TRUSTS[key] = min(trials, key=error) if len(plan) < trace(subject, case).n_calls else Trust()
    return _TRUSTS[key]


def attached(subject: Subject, n_calls: int, plan: Plan, trust: Trust) -> tuple[Any, RunLog]:
    return forecasting.attach(
        subject.patcher,
        "last",
        lambda: Refreshing(plan, trust, n_calls),
        n_calls=n_calls,
        make_memory=lambda rule: rule.memory(),
    )


class Racer(AtSpeed):
    """As many full calls as a speed allows, placed and forecast by how far two forecasts agree."""

    family = "RACER"
    least_calls = Spectrum.least_calls
    one_by_one = True

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        plan = growing_gaps_of(native, calls_for(self.speed, native))
        patched, log = attached(subject, native, plan, trust_for(subject, case, plan))
        return run_of(sample(patched, subject, case, batch), log, native)


METHODS = (Method("racer", "RACER", at_speeds(Racer, SPEEDS, SHORT_SPEEDS)),)
