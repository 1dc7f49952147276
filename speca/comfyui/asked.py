"""What a node is asked to sample, as SamplerCustomAdvanced takes it, sampled once and again on the same noise."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from comfy_extras.nodes_custom_sampler import SamplerCustomAdvanced
from torch import Tensor

from .attach import clock_of, standing_aside
from .same_run import digest, inputs_of, told_apart

Latent = dict[str, Any]
Clock = Callable[[], float]


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


@dataclass(frozen=True)
class Sampled:
    """A result, and the seconds from the sampler's start to its end; loading the model is not among them."""

    latent: Latent
    seconds: float


@dataclass(frozen=True)
class Asked:
    """NOISE, GUIDER, SAMPLER, SIGMAS and LATENT."""

    noise: Drawn
    guider: Any
    sampler: Any
    sigmas: Tensor
    latent: Latent

    @classmethod
    def of(cls, noise: Any, guider: Any, sampler: Any, sigmas: Tensor, latent: Latent) -> Asked:
        return cls(Drawn(noise), guider, sampler, sigmas, latent)

    @property
    def clock(self) -> Clock:
        """That of the device on which the guider's model runs."""
        return clock_of(self.guider.model_patcher.load_device)

    def inputs(self) -> Hashable | None:
        """Equal where all but the noise is the same; None where that cannot be told."""
        return inputs_of(self.guider, self.sampler, self.sigmas, self.latent)

    def sample(self) -> Latent:
        """Raises what the sampler raises."""
        output = SamplerCustomAdvanced.execute(self.noise, self.guider, self.sampler, self.sigmas, self.latent)
        return output.args[0]

    def instead(self, sample: Callable[..., Any]) -> Asked:
        """The same with `sample(native, *args)` in the place of the sampler's own."""
        native = self.sampler.sample
        sampler = copy.copy(self.sampler)  # of the same class, as others look at it
        sampler.sample = lambda *args, **kwargs: sample(native, *args, **kwargs)
        return replace(self, sampler=sampler)

    def timed(self, clock: Clock) -> Sampled:
        seconds = 0.0

        def by_the_clock(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal seconds
            began = clock()
            samples = native(*args, **kwargs)
            seconds += clock() - began
            return samples

        return Sampled(self.instead(by_the_clock).sample(), seconds)

    def warm_up(self) -> None:
        """One call before the clock: a model's first one in a process loads, compiles and tunes."""
        if len(self.sigmas) < 2:
            return
        with standing_aside():
            replace(self, sampler=comfy.samplers.ksampler("euler"), sigmas=self.sigmas[:2]).sample()


def tensors_of(latent: Latent) -> tuple[Tensor, ...]:
    """Its one tensor, or those of a latent of picture and sound (`comfy.nested_tensor`)."""
    samples = latent["samples"]
    return tuple(samples.unbind()) if getattr(samples, "is_nested", False) else (samples,)
