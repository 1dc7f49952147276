"""What a sampler makes of the network's output along its noise schedule. Pure floats.

A latent is x = signal * data + noise * n. The network's output gives the denoised picture,
denoised = latent_gain * x + output_gain * output, and a sampler steps along (x - denoised) / sigma
(`comfy/k_diffusion/sampling.py`, `to_d`). Both are affine, so a few numbers per sigma say everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DECIDED_AT = 3.0
"""The ratio of noise to signal at which a picture begins to forget an error made before.

An error early in a run is partly undone: while noise prevails, the network takes it for noise. Fitted to the final
error that one wrong call causes, at each of 28 euler steps of the three emoji models
(benchmarks/studies/sensitivity.py), and not confirmed on others: there a class is one drawing, which puts early errors
right.
"""


@dataclass(frozen=True)
class NoiseLevel:
    """One sigma of a model: x = signal * data + noise * n, denoised = latent_gain * x + output_gain * output."""

    sigma: float
    signal: float
    noise: float
    latent_gain: float
    output_gain: float

    @property
    def carry(self) -> float:
        """The share of x that the best linear denoiser of white data of unit variance would show in its output."""
        skip = self.signal / (self.signal**2 + self.noise**2)
        return (skip - self.latent_gain) / self.output_gain

    @property
    def spread(self) -> float:
        """The standard deviation of that denoiser's remaining error, seen in the output."""
        return self.noise / math.hypot(self.signal, self.noise) / abs(self.output_gain)

    def final_error(self, step: float, decided_at: float = DECIDED_AT) -> float:
        """How far an error of 1 in the output at this call moves the final picture, if sigma falls by `step`.

        It moves the latent by step / sigma * |output_gain|; the division takes this to the picture's own scale, and
        discounts what later calls undo.
        """
        return step / self.sigma * abs(self.output_gain) / math.hypot(self.signal, self.noise / decided_at)


def error_weights(levels: Sequence[NoiseLevel], last: float, decided_at: float = DECIDED_AT) -> tuple[float, ...]:
    """Per step, how much an error of the output costs the final picture: `final_error`, divided by the run's mean.

    `last` is the sigma at which the run ends. All 1 where that would not be finite and positive.
    """
    sigmas = [*(level.sigma for level in levels), last]
    costs = [level.final_error(level.sigma - end, decided_at) for level, end in zip(levels, sigmas[1:], strict=True)]
    mean = sum(costs) / max(len(costs), 1)
    if not math.isfinite(mean) or mean <= 0:
        return (1.0,) * len(levels)
    return tuple(max(cost / mean, 0.0) for cost in costs)


def renoised_std(before: NoiseLevel, after: NoiseLevel) -> float:
    """The standard deviation of the fresh noise that an ancestral step (eta 1) from `before` to `after` would add.

    sigma_up of `get_ancestral_step` (comfy/k_diffusion/sampling.py), of the ratio of noise to signal.
    """
    if before.signal <= 0:
        return after.noise
    ratio = after.noise * before.signal / (after.signal * before.noise)
    return after.noise * math.sqrt(max(1.0 - ratio**2, 0.0))
