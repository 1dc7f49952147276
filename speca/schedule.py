"""What a sampler makes of the network's output along its noise schedule. Pure.

A latent is x = signal * data + noise * n. The network's output gives the denoised picture,
denoised = latent_gain * x + output_gain * output, and a sampler steps along (x - denoised) / sigma
(`comfy/k_diffusion/sampling.py`, `to_d`). Both are affine, so a few numbers per sigma say everything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

DECIDED_AT = 10.0
"""The ratio of noise to signal at which a picture begins to forget an error made before, as long as the run's own
pictures do not tell (`undecided`). 3 where a class is one drawing, 20 where it is many
(benchmarks/results/sensitivity.md)."""


COSTS_ONE = 0.125
"""How far an error of 1 in the output moves the final picture where it weighs 1, in standard deviations of data: as on
the average over 28 steps of a flow model. One number for all models and schedules: so a threshold asks for a quality,
much the same on each. Weights of mean 1 in every run are no better at equal speed, and PSNR at a threshold then varies
by 10 dB over the zoo's models in place of 5."""


STAYS_ASTRAY, ENDS = 2.0, 2
"""How many times as much an error costs in so many steps at the end of a run, where no computed call puts it right
(`corrector`): the same costs the picture three to four times as much there as before, on ten models of the zoo."""


@dataclass(frozen=True)
class NoiseLevel:
    """One sigma of a model: x = signal * data + noise * n, denoised = latent_gain * x + output_gain * output."""

    sigma: float
    signal: float
    noise: float
    latent_gain: float
    output_gain: float

    @property
    def ratio(self) -> float:
        """Of noise to signal; infinite where there is no signal."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    def shows(self, power: Tensor) -> Tensor:
        """The share of x that the best linear denoiser of data of this variance shows in its picture (Wiener)."""
        return self.signal * power / (self.signal**2 * power + self.noise**2)

    def follows(self, power: Tensor) -> Tensor:
        """The same in its output."""
        return (self.shows(power) - self.latent_gain) / self.output_gain

    def denoised(self, x: Tensor, output: Tensor) -> Tensor:
        """The picture that the network shows by `output` for x, (B, ...) each, in fp32."""
        return self.latent_gain * x.float() + self.output_gain * output.float()

    def output(self, x: Tensor, denoised: Tensor) -> Tensor:
        """By what the network would show this picture for x, (B, ...) each, in fp32."""
        return (denoised.float() - self.latent_gain * x.float()) / self.output_gain

    def final_error(self, step: float, decided_at: float) -> float:
        """How far an error of 1 in the output at this call moves the final picture, if sigma changes by `step`.

        It moves the latent by step / sigma * |output_gain|; the division takes this to the picture's own scale, and
        discounts what later calls undo: while noise prevails, the network takes an error for noise.
        """
        return step / self.sigma * abs(self.output_gain) / math.hypot(self.signal, self.noise / decided_at)


def error_weights(
    levels: Sequence[NoiseLevel], last: float, decided_at: float, euler: bool = True
) -> tuple[float, ...]:
    """Per step, how much an error of the output costs the final picture, `final_error`, in units of `COSTS_ONE`.

    euler: whether an output moves the latent by its own step alone (`_moved`).

    `decided_at` moves costs from some steps to others; their mean stays that of `DECIDED_AT`, so that what a run learns
    of its picture does not change what its threshold asks for. `last` is the sigma at which the run ends. All 1 where
    costs are not finite, or nothing.
    """
    sigmas = [*(level.sigma for level in levels), last]
    moved = [abs(a - b) for a, b in itertools.pairwise(sigmas)] if euler else _moved(sigmas)
    own, usual = (
        [level.final_error(step, at) for level, step in zip(levels, moved, strict=True)]
        for at in (decided_at, DECIDED_AT)
    )
    own[-ENDS:] = [STAYS_ASTRAY * cost for cost in own[-ENDS:]]
    if not (0 < sum(own) < math.inf and 0 < sum(usual) < math.inf):
        return (1.0,) * len(levels)
    unit = COSTS_ONE * sum(own) / sum(usual)
    return tuple(cost / unit for cost in own)


def _moved(sigmas: Sequence[float]) -> list[float]:
    """How far sigma falls by what each call tells, at most, where steps are of a higher order.

    A corrector (heun) takes half of the step before by it. What continues a line from the call before (dpmpp_2m,
    res_multistep) weighs both calls by half of how many times the step before this one is in log sigma: once at most on
    most schedules, four times where one jumps at its end (normal, ddim_uniform: 0.15, 0.001, 0).
    """
    steps = [abs(a - b) for a, b in itertools.pairwise(sigmas)]
    moved = [steps[0], *(max(step, before / 2) for before, step in itertools.pairwise(steps))]
    for k, (a, b, c) in enumerate(zip(sigmas, sigmas[1:], sigmas[2:], strict=False)):
        farther = abs(math.log(c / b) / math.log(b / a)) / 2 if min(a, b, c) > 0 and a != b else 0.0
        if farther > 1:
            moved[k] = max(moved[k], farther * steps[k + 1] * a / b)
            moved[k + 1] = max(moved[k + 1], farther * steps[k + 1])
    return moved


@dataclass(frozen=True)
class Schedule:
    """The noise levels of a run's steps and the sigma at which it ends; no levels where one of them is not known.

    euler: whether its steps are Euler's, as far as was seen.
    """

    levels: tuple[NoiseLevel, ...] = ()
    last: float = 0.0
    euler: bool = True
    _weights: dict[float, tuple[float, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def weight(self, step: int, decided_at: float | None = None) -> float:
        """Of an error in the output at a call of this step (`error_weights`); 1 where nothing is known."""
        if step >= len(self.levels):
            return 1.0
        decided_at = decided_at or DECIDED_AT
        if decided_at not in self._weights:
            self._weights[decided_at] = error_weights(self.levels, self.last, decided_at, self.euler)
        return self._weights[decided_at][step]

    def ends_at(self, step: int) -> bool:
        """Whether this is known to be the last step."""
        return bool(self.levels) and step >= len(self.levels) - 1

    def picture_gain(self, step: int) -> float:
        """What a change of 1 in the picture is in the output, at a step; 0 where nothing is known."""
        return 1 / abs(self.levels[step].output_gain) if step < len(self.levels) else 0.0


UNKNOWN = Schedule()


def renoised_std(before: NoiseLevel, after: NoiseLevel) -> float:
    """The standard deviation of the fresh noise that an ancestral step (eta 1) from `before` to `after` would add.

    sigma_up of `get_ancestral_step` (comfy/k_diffusion/sampling.py), of the ratio of noise to signal.
    """
    if before.signal <= 0:
        return after.noise
    ratio = after.noise * before.signal / (after.signal * before.noise)
    return after.noise * math.sqrt(max(1.0 - ratio**2, 0.0))
