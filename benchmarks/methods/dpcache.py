"""DPCache: "Denoising as Path Planning: Training-Free Acceleration of Diffusion Models with DPCache", arXiv 2602.22654.

The paper's path-aware cost tensor C[i, j, k], from full runs of a calibration set (here four other samples; the paper
takes ten): what the segment from full call j to the next one, k, costs if the full call before j is i, which is the sum
of the L1 errors of TaylorSeer's second-order forecast of the last block's output over the calls up to k. Dynamic
programming picks the K full calls whose segments cost least in all. The calibration is not counted as cost.

As in the released code (argsss/DPCache, `schedule_utils.py` and `cali_utils.py`): the point before i in the forecast's
second difference is the call next to i; the error at the next full call counts; the first three calls are always
computed; behind the last call stands a made-up one, 0.8 of what is extrapolated and 0.2 of the mean of the last three,
so that a plan that ends early pays for it. Different here:
- The recurrence of the paper and the code keeps one predecessor for each call; ours keeps every pair of calls, and so
  finds the plan that costs least.
- The code's longest segment, 30 % of the calls, is no limit here: with few calls there would be no plan.
- Errors are of random elements of the features, and of both conditionings; the code takes the positive one's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from . import forecasting
from .at_speed import AtSpeed, at_speeds
from .base import Method, Run
from .calibration import key_of, trace
from .forecasting import Planned, TaylorFactors, run_of
from .plans import Plan, calls_for

FIRST_FULL = 3
SENTINEL_SHARE = 0.8


def cost_tensor(features: Tensor) -> Tensor:
    """features of N calls, (N, E) -> C (N, N, N + 1): C[i, j, k], infinite where not i < j < k or the forecast lacks an
    anchor; k = N is the end of the run."""
    n = len(features)
    costs = torch.full((n, n, n + 1), torch.inf, dtype=torch.float64)
    for j in range(min(FIRST_FULL - 1, n)):
        costs[: j + 1, j, j + 1] = 0.0  # the first calls are computed one after the other
    truth = torch.cat([features, _beyond_the_end(features)[None]])
    for j in range(FIRST_FULL - 1, n):
        ahead = torch.arange(1, n - j + 1, dtype=features.dtype)[:, None]
        for i in range(1, j):
            slope = (features[j] - features[i]) / (j - i)
            bend = (slope - (features[i] - features[i - 1])) / (j - i)
            errors = (features[j] + ahead * slope + ahead**2 / 2 * bend - truth[j + 1 :]).abs().mean(dim=1)
            costs[i, j, j + 1 :] = errors.double().cumsum(0)
    return costs


def _beyond_the_end(features: Tensor) -> Tensor:
    factors = TaylorFactors(2, first_full=0)
    for call in range(min(3, len(features))):
        factors.record(call, features[len(features) - min(3, len(features)) + call])
    ahead = factors.forecast(min(3, len(features)))
    return SENTINEL_SHARE * ahead + (1 - SENTINEL_SHARE) * features[-3:].mean(dim=0)


def best_plan(costs: Tensor, k: int) -> Plan:
    """The `k` calls, the first `FIRST_FULL` among them, whose segments cost least in all: exact, over pairs of calls.

    Raises ValueError if no plan of finite cost has so many.
    """
    n = costs.shape[0]
    if not FIRST_FULL <= k <= n:
        raise ValueError(f"a plan has {FIRST_FULL} to {n} calls, got {k}")
    best = torch.full((n, n), torch.inf, dtype=costs.dtype)  # over plans that end in the calls (a, b)
    best[FIRST_FULL - 2, FIRST_FULL - 1] = 0.0
    before: list[Tensor] = []
    for _ in range(k - FIRST_FULL):
        best, predecessor = (best[:, :, None] + costs[:, :, :n]).min(dim=0)
        before.append(predecessor)
    total = best + costs[:, :, n]
    if not torch.isfinite(total.min()):
        raise ValueError(f"no plan of {k} calls has a finite cost")
    a, b = divmod(int(total.argmin()), n)
    plan = [b, a]
    for predecessor in reversed(before):
        a, b = int(predecessor[a, b]), a
        plan.append(a)
    return (*range(FIRST_FULL - 2), *reversed(plan))


_COSTS: dict[object, Tensor] = {}


def plan_for(subject: Subject, case: Case, k: int) -> Plan:
    """The best plan of `k` calls by the cost tensor of this model and case."""
    key = key_of(subject, case)
    if key not in _COSTS:
        _COSTS[key] = cost_tensor(trace(subject, case).features)
    return best_plan(_COSTS[key], k)


class DPCache(AtSpeed):
    """K full calls for a speed; forecasts of order 2 between."""

    family = "DPCache"
    least_calls = FIRST_FULL + 1

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        plan = plan_for(subject, case, calls_for(self.speed, native))
        patched, log = forecasting.attach(subject.patcher, "last", lambda: Planned(plan), order=2, n_calls=native)
        return run_of(sample(patched, subject, case, batch), log, native)


METHODS = (Method("dpcache", "DPCache", at_speeds(DPCache)),)
