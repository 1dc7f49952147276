"""Uncached runs of other samples, for the methods that are calibrated; made once a model and case, and shared.

Seeds and noise are never those that are scored. What a calibration costs is counted nowhere: it is paid once for a
model and a case, as the papers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from measure.sampling import Batch, Case, batch_of, sample
from measure.subjects import Subject

from . import attachment, forecasting
from .forecasting import Planned

FIRST_SEED = 100_000
SAMPLES = 4
ELEMENTS = 1 << 15
"""Kept of the features of one call: errors are means, and these are drawn at random over samples, tokens, channels."""


@dataclass(frozen=True)
class Trace:
    """What each of the N calls of the uncached runs was given and made.

    features: (N, E) of the last block's output. latents, velocities: (N, L) of a `Mixture`'s z and dz/dt. times: t of
    each call; some samplers call twice at one.
    """

    features: Tensor
    latents: Tensor
    velocities: Tensor
    times: tuple[float, ...]

    @property
    def n_calls(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Mixture:
    """A call's latent x = signal * picture + noise * n in flow matching's coordinates: z = (1 - t) picture + t n.

    They are a flow-matching model's own; Euler's steps along dz/dt are Euler's steps along dx/dsigma for any other.
    """

    signal: float
    noise: float

    @classmethod
    def at(cls, model_sampling: Any, sigma: Tensor) -> Mixture:
        """Asks the model's own sampling (comfy/model_sampling.py) with numbers; sigma is (B,), all the same."""
        at, zero, one = sigma.flatten()[:1].float().cpu(), torch.zeros(1), torch.ones(1)
        return cls(
            float(model_sampling.noise_scaling(at, zero, one)), float(model_sampling.noise_scaling(at, one, zero))
        )

    @property
    def t(self) -> float:
        return self.noise / (self.signal + self.noise)

    def latent(self, x: Tensor) -> Tensor:
        return x / (self.signal + self.noise)

    def velocity(self, z: Tensor, denoised: Tensor) -> Tensor:
        """n - picture, as the model's answer has it."""
        return (z - denoised) / self.t

    def denoised(self, z: Tensor, velocity: Tensor) -> Tensor:
        return z - self.t * velocity


_TRACES: dict[tuple[str, str, Case], Trace] = {}


def others(subject: Subject, n: int = SAMPLES) -> Batch:
    """Samples that no benchmark scores."""
    return batch_of(subject, n, FIRST_SEED)


def key_of(subject: Subject, case: Case) -> tuple[str, str, Case]:
    return subject.name, subject.weights, case


def trace(subject: Subject, case: Case) -> Trace:
    """Of the uncached runs of `SAMPLES` other samples."""
    key = key_of(subject, case)
    if key not in _TRACES:
        _TRACES[key] = _traced(subject, case)
    return _TRACES[key]


def _traced(subject: Subject, case: Case) -> Trace:
    from comfy.patcher_extension import WrappersMP

    kept: list[Recording] = []
    calls = _Calls()

    def remember(rule: Planned) -> Recording:
        kept.append(Recording(ELEMENTS))
        return kept[-1]

    patched, _ = forecasting.attach(subject.patcher, "last", lambda: Planned(()), n_calls=0, make_memory=remember)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "benchmark_trace", calls.note)
    sample(patched, subject, case, others(subject))
    latents, velocities = calls.rows()
    features = torch.cat([recording.rows() for recording in kept], dim=1)
    return Trace(features, latents, velocities, tuple(calls.times))


class Recording:
    """A memory that only remembers: `elements` of each tensor, the same of every call."""

    def __init__(self, elements: int) -> None:
        self._elements = elements
        self._drawn: Tensor | None = None
        self._rows: list[Tensor] = []

    def record(self, at: float, tensor: Tensor) -> None:
        flat = tensor.reshape(-1)
        if self._drawn is None:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randperm(flat.numel(), generator=generator)[: self._elements]
            self._drawn = drawn.to(flat.device)
        self._rows.append(flat[self._drawn].float().cpu())

    def forecast(self, at: float) -> Tensor:
        raise AssertionError("every call is computed")

    def rows(self) -> Tensor:
        """(N, E): a row for each call."""
        return torch.stack(self._rows)

    @property
    def nbytes(self) -> int:
        return 0


@dataclass
class _Calls:
    """Time, latent and velocity of every call, conditioning by conditioning."""

    times: list[float] = field(default_factory=list)
    streams: dict[Any, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)

    def note(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        denoised = executor(*args, **kwargs)
        key = attachment.stream_of(attachment.transformer_options(args, kwargs))
        mixture = Mixture.at(executor.class_obj.model_sampling, args[1])
        z = mixture.latent(args[0].float())
        latents, velocities = self.streams.setdefault(key, ([], []))
        if len(latents) == len(self.times):
            self.times.append(mixture.t)
        latents.append(z.flatten().cpu())
        velocities.append(mixture.velocity(z, denoised.float()).flatten().cpu())
        return denoised

    def rows(self) -> tuple[Tensor, Tensor]:
        """(N, L) each."""
        latents, velocities = zip(*self.streams.values(), strict=True)
        return _joined(latents), _joined(velocities)


def _joined(streams: Sequence[list[Tensor]]) -> Tensor:
    return torch.cat([torch.stack(calls) for calls in streams], dim=1)
