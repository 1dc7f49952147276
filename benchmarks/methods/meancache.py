"""MeanCache: "From Instantaneous to Average Velocity for Accelerating Flow Matching Inference", arXiv 2601.19961.

Nothing of the network is cached but what it was given and what it made: latents z and velocities v = dz/dt. Between
full calls the average velocity over the coming step, from t to s, is v + (s - t) JVP, and the Jacobian-vector product
is read off the way that the latent took over the last K calls, from z_r to z: JVP = ((z - z_r) / (t - r) - v_r) /
(t - r). K = 1 repeats the last velocity.

Full calls and K come from a graph, by the paper's peak-suppressed shortest path: an edge from call t to call s costs
the mean absolute error of the average velocity from t to s on calibration runs, for the K that does best (a
multigraph), and of the paths of B calls the one with the smallest sum of costs to the power of gamma = 5 is taken.
Calibrated on four other samples, the paper on 250; not counted as cost.

As in the released code (UnicomAI/MeanCache): between two full calls the velocity is carried on step by step, predicted
velocities and the latents that they led to count among the last K calls, and the first and the last call are computed.
The code that found its schedules is not released. Different here: an edge costs what that very code would be wrong by,
walked along it. The latents of models that predict noise are taken into flow matching's coordinates, which the paper
does not do. Velocities are each conditioning's own; by their linearity that is the guided velocity which the code
caches. The paper knows Euler's steps alone: where a sampler calls twice a step, every call counts as one, and of two at
one time the newer. Where it adds noise, the way of the latent is no velocity: such cases are left out.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from .at_speed import AtSpeed, at_speeds
from .attachment import RunLog, attach_run, run_of, stream_of, transformer_options
from .base import Method, Run
from .calibration import Mixture, Trace, key_of, trace
from .plans import calls_for

GAMMA = 5.0
SPANS = (1, 2, 3, 4, 5)
NOISY_SAMPLERS = ("ancestral", "sde", "ddpm", "lcm")


@dataclass(frozen=True)
class Schedule:
    """calls: to compute. spans: K for each call of the run, of the edge that it lies on. times: of each call."""

    calls: tuple[int, ...]
    spans: tuple[int, ...]
    times: tuple[float, ...]


def edge_costs(latents: Tensor, velocities: Tensor, times: Sequence[float]) -> Tensor:
    """(N, L) of N calls -> (len(SPANS), N, N): the mean absolute error of the average velocity from call i to call j,
    for each span; infinite where j is not after i or the span reaches before the first call. A step to the next call
    costs nothing."""
    n = len(latents)
    costs = torch.full((len(SPANS), n, n), torch.inf, dtype=torch.float64)
    for i in range(n - 1):
        for which, span in enumerate(SPANS):
            if span > i + 1:
                continue
            way = Way()
            for past in range(i + 1 - span, i + 1):
                way.keep(latents[past], times[past], velocities[past])
            z, costs[which, i, i + 1] = latents[i] + (times[i + 1] - times[i]) * velocities[i], 0.0
            for j in range(i + 2, n):
                t, s = times[j - 1], times[j]
                velocity = way.estimate(z, t, s, span)
                way.keep(z, t, velocity)
                z = z + (s - t) * velocity
                if s != times[i]:
                    costs[which, i, j] = float((z - latents[j]).abs().mean()) / abs(s - times[i])
    return costs


@dataclass(frozen=True)
class _Moment:
    z: Tensor
    t: float
    velocity: Tensor


class Way:
    """The last calls of a run: where the latent was, and with which velocity it went on."""

    def __init__(self) -> None:
        self.past: deque[_Moment] = deque(maxlen=max(SPANS))

    def keep(self, z: Tensor, t: float, velocity: Tensor) -> None:
        if self.past and self.past[-1].t == t:
            self.past.pop()  # of two calls at one time (heun) the newer counts
        self.past.append(_Moment(z, t, velocity))

    def estimate(self, z: Tensor, t: float, s: float, span: int) -> Tensor:
        """The average velocity from here, z at t, to s."""
        newest, r = self.past[-1], self.past[-min(span, len(self.past))]
        if r is newest or r.t == t:
            return newest.velocity
        jvp = ((z - r.z) / (t - r.t) - r.velocity) / (t - r.t)
        return newest.velocity + (s - t) * jvp


def cheapest_path(costs: Tensor, k: int) -> tuple[int, ...]:
    """costs (N, N) from node to node -> the `k` nodes, the first and the last among them, whose edges cost least."""
    n = costs.shape[0]
    if not 2 <= k <= n:
        raise ValueError(f"a path from the first to the last of {n} calls has 2 to {n} of them, got {k}")
    best = torch.full((n,), torch.inf, dtype=costs.dtype)
    best[0] = 0.0
    before: list[Tensor] = []
    for _ in range(k - 1):
        best, predecessor = (best[:, None] + costs).min(dim=0)
        before.append(predecessor)
    if not torch.isfinite(best[n - 1]):
        raise ValueError(f"no path of {k} calls has a finite cost")
    path = [n - 1]
    for predecessor in reversed(before):
        path.append(int(predecessor[path[-1]]))
    return tuple(reversed(path))


def schedule_of(traced: Trace, costs: Tensor, k: int) -> Schedule:
    """The cheapest path of `k` calls, and the span that is best on each of its edges."""
    cheapest, which = costs.min(dim=0)
    calls = cheapest_path(cheapest**GAMMA, k)
    spans = [1] * traced.n_calls
    for i, j in itertools.pairwise(calls):
        spans[i:j] = [SPANS[int(which[i, j])]] * (j - i)
    return Schedule(calls, tuple(spans), traced.times)


_COSTS: dict[object, Tensor] = {}


def schedule_for(subject: Subject, case: Case, k: int) -> Schedule:
    traced, key = trace(subject, case), key_of(subject, case)
    if key not in _COSTS:
        _COSTS[key] = edge_costs(traced.latents, traced.velocities, traced.times)
    return schedule_of(traced, _COSTS[key], k)


class _VelocityRun:
    """Answers in the place of `apply_model`."""

    def __init__(self, schedule: Schedule, log: RunLog) -> None:
        self._schedule = schedule
        self._log = log
        self._streams: dict[Any, Way] = {}
        self._calls: Counter[Any] = Counter()

    def apply(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        key = stream_of(transformer_options(args, kwargs))
        way = self._streams.setdefault(key, Way())
        mixture = Mixture.at(executor.class_obj.model_sampling, args[1])
        z, call, times = mixture.latent(args[0]), self._calls[key], self._schedule.times
        self._calls[key] += 1
        if call in self._schedule.calls or call + 1 >= len(times):
            self._log.decisions.append("full")
            denoised = executor(*args, **kwargs)
            velocity = mixture.velocity(z, denoised)
        else:
            self._log.decisions.append("forecast")
            velocity = way.estimate(z, mixture.t, times[call + 1], self._schedule.spans[call])
            denoised = mixture.denoised(z, velocity)
        way.keep(z, mixture.t, velocity)
        held = sum(2 * m.z.numel() * m.z.element_size() for w in self._streams.values() for m in w.past)
        self._log.cache_bytes = max(self._log.cache_bytes, held)
        return denoised


class MeanCache(AtSpeed):
    """B full calls for a speed, average velocities between."""

    family = "MeanCache"

    def fits(self, case: Case) -> bool:
        adds_noise = any(name in case.sampler for name in NOISY_SAMPLERS)
        return not adds_noise and super().fits(case)

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        schedule = schedule_for(subject, case, calls_for(self.speed, native))
        patched, log = attach_run(subject.patcher, lambda sigmas, log: _VelocityRun(schedule, log))
        return run_of(sample(patched, subject, case, batch), log, native)


METHODS = (Method("meancache", "MeanCache", at_speeds(MeanCache)),)
