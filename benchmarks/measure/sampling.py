"""One way to sample for every method: a case, a batch of seeds and classes, and ComfyUI's own samplers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from measure.subjects import Subject


@dataclass(frozen=True)
class Case:
    """Everything about a run that is not the method. `cfg` 1 evaluates the positive conditioning alone."""

    steps: int = 50
    sampler: str = "euler"
    scheduler: str = "simple"
    cfg: float = 1.0

    @property
    def key(self) -> str:
        return f"{self.steps}-{self.sampler}-{self.scheduler}-cfg{self.cfg:g}"


@dataclass(frozen=True)
class Batch:
    """Samples by their own seeds and classes, so that a sample is the same in a batch and alone."""

    seeds: tuple[int, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def singles(self) -> list[Batch]:
        return [Batch((s,), (c,)) for s, c in zip(self.seeds, self.labels, strict=True)]


def batch_of(subject: Subject, n: int, first_seed: int = 0) -> Batch:
    """`n` samples, classes spread evenly over the subject's."""
    classes = subject.n_classes
    seeds = tuple(range(first_seed, first_seed + n))
    return Batch(seeds, tuple((seed * 7 + 3) % classes for seed in seeds))


def noise_of(subject: Subject, seeds: Sequence[int]) -> Tensor:
    """(B, ...) standard normal noise, each sample's from its own seed."""
    return torch.stack(
        [torch.randn(subject.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


@dataclass(frozen=True)
class Sampled:
    """Latents (B, ...) and the wall-clock seconds of the whole sampling run."""

    latents: Tensor
    seconds: float


def sample(patcher: Any, subject: Subject, case: Case, batch: Batch, callback: Any = None) -> Sampled:
    """Run ComfyUI's sampler on a patched model. Noise inside SDE samplers comes from the batch's first seed."""
    import comfy.sample

    positive, negative = subject.conditioning(batch.labels)
    noise = noise_of(subject, batch.seeds)
    empty = torch.zeros_like(noise)
    began = time.perf_counter()
    with torch.inference_mode():
        latents = comfy.sample.sample(
            patcher,
            noise,
            case.steps,
            case.cfg,
            case.sampler,
            case.scheduler,
            positive,
            negative,
            empty,
            callback=callback,
            disable_pbar=True,
            seed=batch.seeds[0],
        )
    return Sampled(latents.float(), time.perf_counter() - began)


def with_steps(case: Case, steps: int) -> Case:
    return replace(case, steps=steps)
