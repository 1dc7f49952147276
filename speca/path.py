"""One run's way through its noise levels: where a call stands, what its errors will cost, and whether the sampler adds
fresh noise."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .schedule import UNKNOWN, NoiseLevel, Schedule, renoised_std

# An ancestral step with eta 1 adds noise of `renoised_std`. What a higher order or a guidance rule adds beyond a plain
# step may be as long, but it is made of pictures: neighbours in a row or in a column correlate, by .16 or more where it
# is longest in 10 such samplers on the trained DiT and FLUX, and by .05 or less in the first noisy step of 9 others.
RENOISED_SHARE = 0.3
WHITE_BELOW = 0.1

# A step that ends where it should adds at most 1.7 times `renoised_std`, in the deterministic ones of 17 samplers on
# the emoji DiT and FLUX. More is another latent. A step of the second order has called the network where it ends, or
# near, and adds to that at most 1.21 times (dpm_2_ancestral, dpmpp_2s_ancestral and its cfg++ on FLUX, Wan, DiT and
# Cosmos of the zoo); if all of the noise there were another it would be 1.41 times or more.
MOST_RENOISED = 2.0
MOST_AT_ONE_SIGMA = 1.3

# How far a latent may lie from where the step led, in lengths of the picture that was told, as far as the step goes
# there, and in standard deviations of the noise. Not in lengths of the step: at a high sigma that is mostly noise, and
# as long as another tile, or a region whose mask has changed, is far away. The steps of 42 samplers on FLUX and DiT
# with guidance 5, and on Cosmos without, reach a half of that at most, but for the cfg++ rule at the start of a flow
# and what diverges (on linear_quadratic). A second call at one sigma (heun) corrects less than half of the step before.
STRAYED_PICTURES = 3.0
STRAYED_NOISE = 0.3
CORRECTED_SHARE = 0.5

# Steps count as Euler's if they end within this share of their length from where that leads. Those of a higher order
# from earlier calls (dpmpp_2m, res_multistep) do, and spread over two steps come to the same; fresh noise and the cfg++
# rule do not.
EULERS_WITHIN = 0.3

# Steps are Euler's to the letter within this share, which is rounding.
EULERS_EXACTLY = 1e-3

# So many jumps among so many evaluations are the sampler's way, which leaves nothing to forecast from.
JUMPS_TO_GIVE_UP, OF_LAST = 4, 8


@dataclass(frozen=True)
class Seen:
    """One evaluation: the latent x, (B, ...), and the picture that it was told for it."""

    sigma: float
    x: Tensor
    denoised: Tensor

    @classmethod
    def copied(cls, sigma: float, x: Tensor, denoised: Tensor) -> Seen:
        return cls(sigma, x.detach().clone(), denoised.detach().clone())

    def surprise(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """(x less where a deterministic step from here to `sigma` leads, that step), in fp32."""
        before = self.x.float()
        step = (sigma - self.sigma) / self.sigma * (before - self.denoised.float())
        return x.float() - before - step, step


class SamplingPath:
    """`model_sampling` is the model's own (comfy/model_sampling.py), probed with numbers; `sigmas` the run's."""

    def __init__(self, model_sampling: Any, sigmas: Sequence[float]) -> None:
        self._model_sampling = model_sampling
        self._sigmas = sigmas
        self._levels: dict[float, NoiseLevel | None] = {}
        levels = [self.level(sigma) for sigma in sigmas[:-1]]
        known = [level for level in levels if level is not None]
        self.schedule = Schedule(tuple(known), sigmas[-1]) if known and len(known) == len(levels) else UNKNOWN
        self._last: Seen | None = None
        self._stride = 0.0
        self._reached = 0
        self._jumps: deque[bool] = deque(maxlen=OF_LAST)
        self._began = False
        self._ahead: float | None = None
        self.renoised = False
        self.euler = True
        self._exactly = True

    @property
    def keeps_jumping(self) -> bool:
        return sum(self._jumps) >= JUMPS_TO_GIVE_UP

    def position(self, sigma: float) -> tuple[int, float]:
        """(step, progress): the schedule's interval that `sigma` falls in, and its place in the run from 0 to 1.

        A sampler may ask between two sigmas of the schedule, or beyond them, and a schedule may go up. Of several
        intervals that hold `sigma` it is the next one from where the run has come to (`arrive`). A sigma that is
        repeated counts from its last place.
        """
        sigmas, steps = self._sigmas, len(self._sigmas) - 1
        if steps < 1:
            return 0, 0.0
        step = self._interval(sigma)
        gap = sigmas[step] - sigmas[step + 1]
        fraction = (sigmas[step] - sigma) / gap if gap != 0 else 0.0
        return step, (step + min(max(fraction, 0.0), 1.0)) / steps

    def _interval(self, sigma: float) -> int:
        sigmas, steps = self._sigmas, len(self._sigmas) - 1
        holding = [i for i in range(steps) if _between(sigma, sigmas[i], sigmas[i + 1])]
        ahead = next((i for i in holding if i >= self._reached), None)
        if ahead is not None:
            return ahead
        if holding and any(_same(sigma, of_schedule) for of_schedule in sigmas):
            return holding[-1]  # a restart
        # Beside the schedule, as steps of the second order are where sigmas rise: a sampler does not go back.
        nearest = min(range(self._reached, steps + 1), key=lambda i: (abs(sigmas[i] - sigma), -i))
        return min(nearest, steps - 1)

    def length(self, step: int) -> float:
        """How far sigma falls in the schedule's interval `step`."""
        return self._sigmas[step] - self._sigmas[step + 1]

    def level(self, sigma: float) -> NoiseLevel | None:
        """None for a model whose sampling is not affine in finite numbers."""
        if sigma not in self._levels:
            self._levels[sigma] = _probe(self._model_sampling, sigma)
        return self._levels[sigma]

    def arrive(self, x: Tensor, sigma: float) -> bool:
        """Before an evaluation: whether the latent, (B, ...), is elsewhere than any step from the last one can lead.

        Sets `renoised`, for the rest of the run, at the first fresh noise that falls due on the way down.
        """
        if len(self._sigmas) > 1:
            self._reached = self._interval(sigma)
        jumped, last = False, self._last
        if last is not None and last.sigma > 0 and x.shape == last.x.shape:
            jumped = self._jumped(last, x, sigma)
        elif self._began:
            self.euler = False
        self.euler = self.euler and (not self._began or _same(sigma, self._ahead))
        if self.schedule.euler and not (self.euler and self._exactly):
            self.schedule = replace(self.schedule, euler=False)
        self._began, self._ahead = True, self._end_of_step(sigma)
        self._jumps.append(jumped)
        return jumped

    def ahead(self, sigma: float) -> float | None:
        """The sigma at which the sampler's step from this evaluation ends; None if its steps are not all Euler's."""
        return self._end_of_step(sigma) if self.euler else None

    def _end_of_step(self, sigma: float) -> float | None:
        step = min(self._reached, len(self._sigmas) - 2)
        return self._sigmas[step + 1] if step >= 0 and _same(sigma, self._sigmas[step]) else None

    def leave(self, x: Tensor, sigma: float, denoised: Any) -> None:
        """After an evaluation: `denoised` is what the sampler gets for x, after guidance; of any kind."""
        known = isinstance(denoised, Tensor) and denoised.shape == x.shape
        self._last = Seen.copied(sigma, x, denoised) if known else None

    def follows(self, latent: Tensor) -> bool:
        """Whether the latent of a call is the sampler's own, whose jumps `arrive` tells. A tile or crop is not; none is
        before the first evaluation ends, or where what a guider returns tells nothing."""
        return self._last is not None and latent.shape[1:] == self._last.x.shape[1:]

    def _jumped(self, last: Seen, x: Tensor, sigma: float) -> bool:
        before, level = self.level(last.sigma), self.level(sigma)
        if before is None or level is None:
            self.euler = False
            return False
        surprise, step = last.surprise(x, sigma)
        in_rows = (surprise[..., 1:] * surprise[..., :-1]).sum()
        in_columns = (surprise[..., 1:, :] * surprise[..., :-1, :]).sum()
        correlated = torch.maximum(in_rows.abs(), in_columns.abs()) / surprise.numel()
        variance, travelled = surprise.square().mean(), step.square().mean()
        figures = torch.stack((variance, travelled, correlated, _allowed(last, level))).tolist()
        variance, travelled, correlated, allowed = figures
        length, stride = math.sqrt(variance), math.sqrt(travelled)
        self.euler = self.euler and length <= EULERS_WITHIN * stride
        self._exactly = self._exactly and length <= EULERS_EXACTLY * stride
        again = _same(sigma, last.sigma)
        if again:
            allowed += CORRECTED_SHARE * self._stride
        self._stride = stride
        white = correlated < WHITE_BELOW * variance
        due = self._due(level) if again or sigma < last.sigma else 0.0
        falls_due = length <= (MOST_AT_ONE_SIGMA if again else MOST_RENOISED) * due
        if white and falls_due and length > RENOISED_SHARE * due:
            self.renoised = True
        if self.renoised and falls_due:
            return False
        return length > RENOISED_SHARE * level.noise and (white or length > allowed)

    def _due(self, level: NoiseLevel) -> float:
        """The fresh noise that an ancestral step to here would add, from where the sampler's step began.

        That is not always the last call: a step of the second order makes one on its way.
        """
        step, sigma = min(self._reached, len(self._sigmas) - 2), level.sigma
        if step > 0 and _same(sigma, self._sigmas[step]):
            step -= 1
        began = self.level(self._sigmas[step]) if step >= 0 else None
        return 0.0 if began is None or began.sigma <= sigma else renoised_std(began, level)

    def strayed(self, seen: Seen, x: Tensor, sigma: float) -> bool:
        """Whether x, (1, ...), does not lie where the call `seen` leads, as far as that tells without the guidance."""
        level = self.level(sigma)
        if level is None or seen.sigma <= 0 or x.shape != seen.x.shape:
            return False
        surprise, _ = seen.surprise(x, sigma)
        return bool(surprise.square().mean().sqrt() > _allowed(seen, level))


def _allowed(seen: Seen, level: NoiseLevel) -> Tensor:
    """How long a surprise may be at `level`, a scalar."""
    picture = abs(1 - level.sigma / seen.sigma) * seen.denoised.float().square().mean().sqrt()
    return STRAYED_PICTURES * picture + STRAYED_NOISE * level.noise


def _same(sigma: float, other: float | None) -> bool:
    return other is not None and math.isclose(sigma, other, rel_tol=1e-5)


def _between(sigma: float, start: float, end: float) -> bool:
    """Whether an interval that falls or rises holds `sigma`, its start included and its end not, but for rounding."""
    if math.isclose(sigma, end, rel_tol=1e-5, abs_tol=1e-9):
        return False
    return math.isclose(sigma, start, rel_tol=1e-5, abs_tol=1e-9) or min(start, end) < sigma < max(start, end)


def _probe(model_sampling: Any, sigma: float) -> NoiseLevel | None:
    at = torch.tensor([sigma])
    zero, one = torch.zeros(1), torch.ones(1)
    try:
        level = NoiseLevel(
            sigma,
            signal=float(model_sampling.noise_scaling(at, zero, one)),
            noise=float(model_sampling.noise_scaling(at, one, zero)),
            latent_gain=float(model_sampling.calculate_denoised(at, zero, one)),
            output_gain=float(model_sampling.calculate_denoised(at, one, zero)),
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None  # a kind of sampling that is not known here: errors are not weighted
    figures = (level.signal, level.noise, level.latent_gain, level.output_gain)
    usable = sigma > 0 and all(map(math.isfinite, figures)) and level.noise > 0 and level.output_gain != 0
    return level if usable else None
