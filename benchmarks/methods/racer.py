"""RACER: "Disagree to Accelerate: Closing the Loop on Diffusion Feature Forecasts", arXiv 2608.01740.

Spectrum's forecast h on Spectrum's growing gaps, and beside it, from the same cache, the straight line g through the
last two full calls. The two agree where features move smoothly: r = |h - g| / |h| tells how far h can be trusted. The
answer is a + kappa (h - a), a being the newest full call, with kappa = exp(-decay (ahead - 1)) / (1 + exp(-4 (theta -
r))). Where r is over a limit the call is computed, and the next one that was scheduled is not: full calls stay as many.

Neither the paper's text nor its code (LiZaiyuan0619/RACER) was to be had: written from its abstract, a summary of its
equations and the form of kappa that others took over from it. The constants there were fitted model by model; here
decay, theta, the limit and Spectrum's share of the fit are those, of a few, that forecast the features of four other
samples with the least error (not counted as cost).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject
from speca.forecast import newton

from . import forecasting
from .base import Method, Run, Setting
from .calibration import key_of, trace
from .forecasting import Combined, Decision, run_of
from .plans import Plan, calls_for, growing_gaps_of
from .spectrum import LEAST_CALLS, chebyshev, mixed

STEEPNESS = 4.0
DECAYS = (0.0, 0.1, 0.3)
THETAS = (0.15, 0.4, 3.0)
SHARES = (0.5, 1.0)
RISKIEST = (0.0, 0.05, 0.15)
"""Shares of the forecast calls that are over the limit when none is refreshed."""
ELEMENTS = 1 << 13
SPEEDS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)
SHORT_SPEEDS = (2.0, 3.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True)
class Trust:
    """share: of the fit in Spectrum's forecast. decay: of the trust with each call ahead. theta: the disagreement at
    which half of it is left. limit: the disagreement from which on a call is computed."""

    share: float = 0.5
    decay: float = 0.0
    theta: float = 3.0
    limit: float = math.inf

    def kappa(self, disagreement: float, ahead: float) -> float:
        return math.exp(-self.decay * max(ahead - 1, 0)) / (1 + math.exp(-STEEPNESS * (self.theta - disagreement)))


class Trusted(Combined):
    """Spectrum's forecast over all full calls of a run of `n_calls`, shrunk to the newest of them."""

    def __init__(self, trust: Trust, n_calls: int) -> None:
        super().__init__(lambda times, t: mixed(times, t, n_calls, trust.share))
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


def simulated(features: Tensor, plan: Plan, trust: Trust) -> tuple[float, list[float]]:
    """(N, E) features of an uncached run -> the forecasts' summed squared relative error, and their disagreements."""
    n = len(features)
    rule = Refreshing(plan, trust, n)
    memory: Trusted | None = None
    error, risks = 0.0, []
    for call in range(n):
        if rule.decide(call, n) == "full":
            memory = memory or rule.memory()
            memory.record(call, features[call])
        else:
            assert memory is not None
            risks.append(memory.disagreement(call))
            error += float(((memory.forecast(call) - features[call]).norm() / features[call].norm()) ** 2)
    return error, risks


def fitted_trust(features: Tensor, plan: Plan) -> Trust:
    """Of the constants that are tried, those with the least error on (N, E) features."""
    _, risks = simulated(features, plan, Trust())
    limits = [_quantile(risks, 1 - share) for share in RISKIEST]
    trials = [Trust(*constants) for constants in itertools.product(SHARES, DECAYS, THETAS, limits)]
    return min(trials, key=lambda trust: simulated(features, plan, trust)[0])


def _quantile(values: Sequence[float], share: float) -> float:
    """The value that a share of all are under; infinite for all of them."""
    if share >= 1 or not values:
        return math.inf
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


_TRUSTS: dict[object, Trust] = {}


def trust_for(subject: Subject, case: Case, plan: Plan) -> Trust:
    key = (key_of(subject, case), plan)
    if key not in _TRUSTS:
        _TRUSTS[key] = fitted_trust(trace(subject, case).features[:, :ELEMENTS], plan)
    return _TRUSTS[key]


@dataclass(frozen=True)
class Racer:
    """As many full calls as a speed allows, placed and forecast by how far two forecasts agree."""

    speed: float
    family: str = "RACER"
    one_by_one: bool = True

    @property
    def label(self) -> str:
        return f"{self.speed:g}x"

    def fits(self, case: Case) -> bool:
        return calls_for(self.speed, case.steps) >= LEAST_CALLS

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        plan = growing_gaps_of(native, calls_for(self.speed, native))
        trust = trust_for(subject, case, plan)
        patched, log = forecasting.attach(
            subject.patcher,
            "last",
            lambda: Refreshing(plan, trust, native),
            n_calls=native,
            make_memory=lambda rule: rule.memory(),
        )
        return run_of(sample(patched, subject, case, batch), log, native)


def settings(short: bool) -> list[Setting]:
    return [Racer(speed) for speed in (SHORT_SPEEDS if short else SPEEDS)]


METHODS = (Method("racer", "RACER", settings),)
