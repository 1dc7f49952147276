"""One run's way through its noise levels: where a call stands, what its errors will cost, and whether the sampler adds
fresh noise."""

from __future__ import annotations

import bisect
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .schedule import DECIDED_AT, NoiseLevel, error_weights, renoised_std

# An ancestral step with eta 1 adds noise of `renoised_std`. What a higher order or a guidance rule adds beyond a plain
# step may be as long, but it is made of pictures: neighbours along the last axis correlate, by .16 or more where it is
# longest in 10 such samplers on the trained DiT and FLUX, and by .05 or less in the first noisy step of 9 others.
RENOISED_SHARE = 0.3
WHITE_BELOW = 0.1


class SamplingPath:
    """`model_sampling` is the model's own (comfy/model_sampling.py), probed with numbers; `sigmas` the run's."""

    def __init__(self, model_sampling: Any, sigmas: Sequence[float], decided_at: float = DECIDED_AT) -> None:
        self._model_sampling = model_sampling
        self._sigmas = sigmas
        self._levels: dict[float, NoiseLevel | None] = {}
        levels = [self.level(sigma) for sigma in sigmas[:-1]]
        known = [level for level in levels if level is not None]
        whole = len(known) == len(levels)
        self._weights = error_weights(known, sigmas[-1], decided_at) if whole and known else (1.0,) * len(levels)
        self._last: tuple[float, Tensor, Tensor] | None = None
        self.renoised = False

    def position(self, sigma: float) -> tuple[int, float]:
        """(step, progress): the schedule's interval that `sigma` falls in, and its place in the run from 0 to 1.

        A sampler may ask between two sigmas of the schedule. A sigma that is repeated counts from its last place.
        """
        sigmas, steps = self._sigmas, len(self._sigmas) - 1
        if steps < 1:
            return 0, 0.0
        after = bisect.bisect_right(sigmas, -sigma * (1 - 1e-5) + 1e-9, key=operator.neg)
        step = min(max(after - 1, 0), steps - 1)
        gap = sigmas[step] - sigmas[step + 1]
        fraction = (sigmas[step] - sigma) / gap if gap > 0 else 0.0
        return step, min(max((step + fraction) / steps, 0.0), 1.0)

    def weight(self, step: int) -> float:
        """Of an error in the output at a call of this step, 1 on the run's average."""
        return self._weights[step] if step < len(self._weights) else 1.0

    def level(self, sigma: float) -> NoiseLevel | None:
        """None for a model whose sampling is not affine in finite numbers."""
        if sigma not in self._levels:
            self._levels[sigma] = _probe(self._model_sampling, sigma)
        return self._levels[sigma]

    def arrive(self, x: Tensor, sigma: float) -> None:
        """Before a call: compare the latent, (B, ...), with where a deterministic step from the last one would lead.

        Sets `renoised`, for the rest of the run, at the first fresh noise.
        """
        if self._last is not None and not self.renoised:
            self.renoised = self._is_fresh_noise(x, sigma)

    def leave(self, x: Tensor, sigma: float, denoised: Tensor) -> None:
        """After a call: `denoised` is what the sampler gets for x, after guidance."""
        self._last = None if self.renoised else (sigma, x.detach().clone(), denoised.detach().clone())

    def _is_fresh_noise(self, x: Tensor, sigma: float) -> bool:
        assert self._last is not None
        before, x_before, denoised = self._last
        level_before, level = self.level(before), self.level(sigma)
        if sigma >= before or level_before is None or level is None or x.shape != x_before.shape:
            return False
        step = x_before.float() + (sigma - before) * (x_before.float() - denoised.float()) / before
        surprise = x.float() - step
        variance = surprise.square().mean()
        if not variance.sqrt() > RENOISED_SHARE * renoised_std(level_before, level):
            return False
        neighbours = (surprise[..., 1:] * surprise[..., :-1]).mean()
        return bool(neighbours.abs() < WHITE_BELOW * variance)


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
