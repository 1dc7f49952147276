"""What a method's curve says at a speed: quality over speedup, a point for each of its settings. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A setting's speedup, and its PSNR in dB over samples: mean, tenth percentile, worst; NaN where not asked for."""

    speed: float
    mean: float
    tenth: float = math.nan
    worst: float = math.nan


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats in both speed and mean quality, slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.speed, -p.mean)):
        if not best or point.mean > best[-1].mean:
            best.append(point)
    return best[::-1]


def at(curve: Sequence[Point], speed: float) -> Point | None:
    """Linear in the speed's logarithm between the two points about it; None beyond the ends. curve: slowest first."""
    for slower, faster in itertools.pairwise(curve):
        if slower.speed <= speed <= faster.speed:
            apart = math.log(faster.speed / slower.speed)
            share = math.log(speed / slower.speed) / apart if apart else 0.0
            return Point(speed, *(a + share * (b - a) for a, b in zip(slower[1:], faster[1:], strict=True)))
    return None


def at_least(curve: Sequence[Point], speed: float) -> Point | None:
    """As `at`, and the slowest point below its speed: nobody who wants 2x is hurt by 2.3x."""
    return curve[0] if curve and speed <= curve[0].speed else at(curve, speed)
