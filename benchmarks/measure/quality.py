"""How alike two pictures are, what a run cost at a real model's depth, and what a method's curve says at a speed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PSNR_OF_EQUALS = 100.0
"""dB given to identical pictures, so that means and medians exist."""


def psnr(picture: Tensor, reference: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB per sample; both (B, ...) in [0, 1], so the peak is 1."""
    errors = (picture.double() - reference.double()).flatten(1).square().mean(dim=1)
    return [PSNR_OF_EQUALS if e <= 10 ** (-PSNR_OF_EQUALS / 10) else -10 * math.log10(e) for e in errors.tolist()]


def ssim(picture: Tensor, reference: Tensor) -> list[float]:
    """Structural similarity per sample by scikit-image (its 7 x 7 default window), frames of a clip averaged.

    (B, C, H, W) or (B, C, T, H, W) in [0, 1]; NaN where scikit-image is not installed.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return [math.nan] * picture.shape[0]

    def of(a: Tensor, b: Tensor) -> float:
        return float(structural_similarity(a.float().numpy(), b.float().numpy(), channel_axis=0, data_range=1.0))

    values = []
    for a, b in zip(picture, reference, strict=True):
        pairs = list(zip(a.unbind(1), b.unbind(1), strict=True)) if a.ndim == 4 else [(a, b)]
        values.append(sum(of(x, y) for x, y in pairs) / len(pairs))
    return values


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


@dataclass(frozen=True)
class Point:
    """One setting's place in the plot: computed speedup and PSNR in dB."""

    speedup: float
    psnr: float


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both speed and quality, slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speedup, -p.psnr)):
        if not best or point.psnr > best[-1].psnr:
            best.append(point)
    return best[::-1]


def quality_at(points: Sequence[Point], speedup: float) -> float | None:
    """The PSNR a method reaches at a speedup of at least `speedup`; None if it never is that fast.

    Linear in the logarithm of the speedup between neighbouring points of the frontier. Below the slowest point it is
    that point's: nobody who wants 2x is hurt by 2.3x.
    """
    curve = frontier(points)
    if not curve or speedup > curve[-1].speedup:
        return None
    if speedup <= curve[0].speedup:
        return curve[0].psnr
    for slower, faster in itertools.pairwise(curve):
        if slower.speedup <= speedup <= faster.speedup:
            share = math.log(speedup / slower.speedup) / math.log(faster.speedup / slower.speedup)
            return slower.psnr + share * (faster.psnr - slower.psnr)
    raise AssertionError("a frontier is sorted")


def mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values)) if values else math.nan


def median(values: Sequence[float]) -> float:
    return float(torch.tensor(list(values), dtype=torch.float64).quantile(0.5)) if values else math.nan


def tenth_percentile(values: Sequence[float]) -> float:
    """Nine in ten are better."""
    return float(torch.tensor(list(values), dtype=torch.float64).quantile(0.1)) if values else math.nan
