"""How alike two pictures are, and what a run cost at a real model's depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speca import comparison

PSNR_OF_EQUALS = 100.0
"""dB given to identical pictures, so that means and medians exist."""


def psnr(picture: Tensor, reference: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB per sample; both (B, ...) in [0, 1], so the peak is 1."""
    errors = comparison.mean_square(picture, reference).tolist()
    return [min(PSNR_OF_EQUALS, comparison.psnr(error)) for error in errors]


def ssim(picture: Tensor, reference: Tensor) -> list[float]:
    """Structural similarity per sample by scikit-image (its 7 x 7 default window), frames of a clip averaged.

    (B, C, H, W) or (B, C, T, H, W) in [0, 1]; NaN where scikit-image is not installed.
    """
    pictures, references = (x.float().movedim(1, -1) for x in (picture, reference))
    frames = [[x.reshape(-1, *x.shape[-3:]) for x in pair] for pair in zip(pictures, references, strict=True)]
    try:
        return [comparison.ssim_by_skimage(*pair) for pair in frames]
    except ImportError:
        return [math.nan] * len(frames)


def relative_error(latent: Tensor, reference: Tensor) -> list[float]:
    """|x - r| / |r| per sample, (B, ...) -> B floats."""
    difference = (latent.double() - reference.double()).flatten(1).norm(dim=1)
    return (difference / reference.double().flatten(1).norm(dim=1)).tolist()


@dataclass(frozen=True)
class Cost:
    """What the network was asked by one sample's run, in calls.

    native: calls that the uncached run makes (more than were asked, for a run with fewer steps).
    full: computed as they are. verified: forecasts that ran one block and the head and stand (SpeCa: accepted).
    rejected: forecasts that ran one block and the head, and were then computed in full. forecast: calls that ran no
    block at all (TaylorSeer, EasyCache): counted as free, which flatters those methods by their own overhead.
    """

    native: int
    full: float
    verified: float = 0.0
    rejected: float = 0.0
    forecast: float = 0.0

    @property
    def asked(self) -> float:
        return self.full + self.verified + self.rejected + self.forecast

    def blocks(self, depth: int) -> float:
        """Block evaluations in a network of `depth` blocks: a full call `depth`, a verified 1, a rejected depth + 1."""
        return self.full * depth + self.verified + self.rejected * (depth + 1)

    def speedup(self, depth: int) -> float:
        return self.native * depth / max(self.blocks(depth), 1e-9)


def joint_speedup(costs: Sequence[Cost], depth: int) -> float:
    """Speedup of all samples together: block evaluations in all over block evaluations spent."""
    return sum(c.native for c in costs) * depth / max(sum(c.blocks(depth) for c in costs), 1e-9)


def mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values)) if values else math.nan


def median(values: Sequence[float]) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).quantile(0.5)) if values else math.nan


def tenth_percentile(values: Sequence[float]) -> float:
    """Nine in ten are better."""
    return float(torch.tensor(list(values), dtype=torch.float64).quantile(0.1)) if values else math.nan
