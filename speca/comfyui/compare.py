"""One guider's model without and with SpeCa, on the same noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..events import RunRecord
from ..witness import Witness
from .attach import Attachment, attachment_on, clock_of, standing_aside, witnessed
from .same_run import SameLiving, digest, inputs_of, told_apart

Latent = dict[str, Any]
Sample = Callable[[Any, Any, Any, Tensor, Latent], Latent]
"""noise, guider, sampler, sigmas, latent image -> latent: ComfyUI's SamplerCustomAdvanced."""


@dataclass(frozen=True)
class Sampled:
    """A result, and the seconds from the sampler's start to its end; loading the model is not among them."""

    latent: Latent
    seconds: float


@dataclass(frozen=True)
class Pair:
    """kept: the uncached result is that of an earlier comparison. record: SpeCa's own account of its run."""

    uncached: Sampled
    speca: Sampled
    kept: bool
    record: RunRecord | None
    witness: Witness | None


class Comparison:
    """Keeps the last uncached result, in system memory, for as long as it is what another run would give."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._kept: tuple[Hashable, Sampled] | None = None
        self._warm: Hashable = None

    def run(
        self, noise: Any, guider: Any, sampler: Any, sigmas: Tensor, latent: Latent, true_errors: bool = False
    ) -> Pair:
        """Sample with SpeCa, then without it, unless that is known. Raises ValueError where SpeCa is not on the model.

        What is interrupted or fails leaves neither a result nor anything on the model.
        """
        attachment = attachment_on(guider, "SpeCa Compare")
        clock = clock_of(guider.model_patcher.load_device)
        inputs = inputs_of(guider, sampler, sigmas, latent)
        drawn = Drawn(noise)
        self._warm_up(drawn, guider, sigmas, latent)

        witness = Witness(attachment.config.error_metric, clock) if true_errors else None
        with witnessed(witness):
            before = attachment.run_of()
            speca = timed(
                self._sample, drawn, guider, sampler, sigmas, latent, clock if witness is None else witness.run_clock
            )
        record = run_since(attachment, before)

        comfy.model_management.throw_exception_if_processing_interrupted()
        key = (inputs, drawn.key())
        if self._kept is not None and None not in key and self._kept[0] == key:
            known = self._kept[1]
            device = comfy.model_management.intermediate_device()
            uncached = Sampled(
                {**speca.latent, "samples": known.latent["samples"].to(device, copy=True)}, known.seconds
            )
            return Pair(uncached, speca, True, record, witness)
        self._kept = None
        with standing_aside():
            uncached = timed(self._sample, drawn, guider, sampler, sigmas, latent, clock)
        if None not in key:
            samples = uncached.latent["samples"].to("cpu", copy=True)  # what is handed on may be worked on in place
            self._kept = key, Sampled({"samples": samples}, uncached.seconds)
        return Pair(uncached, speca, False, record, witness)

    def _warm_up(self, noise: Drawn, guider: Any, sigmas: Tensor, latent: Latent) -> None:
        """Once for each model and shape."""
        patcher = guider.model_patcher
        warm = SameLiving(patcher.model), patcher.patches_uuid, tuple(tensor.shape for tensor in tensors_of(latent))
        if warm == self._warm:
            return
        warm_up(self._sample, noise, guider, sigmas, latent)
        self._warm = warm


def timed(
    sample: Sample,
    noise: Drawn,
    guider: Any,
    sampler: Any,
    sigmas: Tensor,
    latent: Latent,
    clock: Callable[[], float],
) -> Sampled:
    seconds = 0.0

    def by_the_clock(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal seconds
        began = clock()
        samples = native(*args, **kwargs)
        seconds += clock() - began
        return samples

    result = sample(noise, guider, in_place_of(sampler, by_the_clock), sigmas, latent)
    return Sampled(result, seconds)


def in_place_of(sampler: Any, sample: Callable[..., Any]) -> Any:
    """The sampler, with `sample(native, *args)` in the place of its own."""
    native = sampler.sample
    replaced = copy.copy(sampler)  # of the same class, as others look at it
    replaced.sample = lambda *args, **kwargs: sample(native, *args, **kwargs)
    return replaced


def warm_up(sample: Sample, noise: Drawn, guider: Any, sigmas: Tensor, latent: Latent) -> None:
    """One call before the clock: a model's first one in a process loads, compiles and tunes."""
    if len(sigmas) < 2:
        return
    with standing_aside():
        sample(noise, guider, comfy.samplers.ksampler("euler"), sigmas[:2], latent)


class Drawn:
    """A NOISE that is drawn once and given again, to each run with a random generator in the same state."""

    def __init__(self, noise: Any) -> None:
        self._noise = noise
        self._drawn: Any = None
        self.seed = noise.seed

    def generate_noise(self, latent: Latent) -> Any:
        if self._drawn is None:
            self._drawn = self._noise.generate_noise(latent)
        torch.manual_seed(self.seed)
        return self._drawn.clone() if isinstance(self._drawn, Tensor) else self._drawn

    def key(self) -> Hashable | None:
        """Equal for the same noise; None where that cannot be told."""
        return told_apart(lambda: (self.seed, digest(self._drawn)))


def tensors_of(latent: Latent) -> tuple[Tensor, ...]:
    """Its one tensor, or those of a latent of picture and sound (`comfy.nested_tensor`)."""
    samples = latent["samples"]
    return tuple(samples.unbind()) if getattr(samples, "is_nested", False) else (samples,)


def run_since(attachment: Attachment, before: RunRecord | None) -> RunRecord | None:
    record = attachment.run_of()
    return None if record is before else record
