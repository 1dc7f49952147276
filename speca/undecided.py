"""How much of a picture its conditioning leaves open, learnt from the denoised pictures of the run itself. Pure.

An error early in a run is undone as far as the picture is decided anyway: by a class that is one drawing, by a
reference picture, by a mask. Where many pictures are possible, noise decides which it becomes, and decides it early.

Take the coarse part of what can be drawn under one conditioning as normal, of variance S. At a ratio s of noise to
signal its best denoiser shows mean + S / (S + s^2) (x - mean), and along a run x - mean grows as sqrt(S + s^2). So two
denoised pictures of a run differ by S (1 / sqrt(S + s_after^2) - 1 / sqrt(S + s_before^2)) times a standard normal,
from which S follows. What that is worth: benchmarks/README.md.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import DECIDED_AT

CELLS = 4
"""Along each side: what is coarser than a quarter of the picture counts as one. What moves together, pixels and
channels, varies the more, and is decided the earlier."""

TOO_SMALL = 3.0
"""How many times as far a picture is open as is learnt: the network's pictures change less than those of the best
denoiser of normal data, for pictures are bounded. Beside the value that fits what errors cost (`study sensitivity`),
over 68 samples of seventeen models; each is off by a factor of 3.5 besides."""

_TRIED = 256


class Undecided:
    """Of one stream. `see` is told of every full call."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, Tensor]] = []
        self.variance: float | None = None

    @property
    def decided_at(self) -> float | None:
        """The ratio of noise to signal at which a picture begins to forget an error made before; None if not known.

        What one run tells of it is noisy, so it counts for half, in logarithms, beside what is usual.
        """
        return None if self.variance is None else math.sqrt(TOO_SMALL * math.sqrt(self.variance) * DECIDED_AT)

    def see(self, ratio: float, denoised: Tensor) -> None:
        """`denoised`, (1, C, ...), is what the network shows at this ratio of noise to signal."""
        if self.decided_at is not None and ratio < self.decided_at:
            return  # what is decided changes no more, and tells nothing of what was open
        cells = coarse(denoised).cpu()  # a few numbers, in a precision that not every device has
        if not cells.isfinite().all():
            return
        earlier = next((seen for seen in reversed(self._seen) if seen[0] != ratio), None)
        if earlier is not None:
            before, then = earlier
            # What can be drawn varies by no more than all that is shown.
            self.variance = variance_left_open(power(cells - then), before, ratio, at_most=power(cells))
        self._seen.append((ratio, cells))

    def start_anew(self) -> None:
        """The run goes on from another latent."""
        self._seen = []


def coarse(picture: Tensor) -> Tensor:
    """(1, C, ...) -> the means of its cells, times the root of their size: of one pixel's white noise, 1 remains."""
    picture = picture.float()
    if picture.ndim not in (3, 4, 5):
        picture = picture.reshape(1, 1, -1)
    sides = picture.shape[2:]
    cells = [min(CELLS, side) for side in sides]
    return F.interpolate(picture, size=cells, mode="area") * math.sqrt(math.prod(sides) / math.prod(cells))


def power(cells: Tensor) -> float:
    """(1, C, ...) -> the mean square over the cells along the direction of the channels in which it is largest."""
    by_cell = cells.flatten(2)[0].double()
    return float(torch.linalg.eigvalsh(by_cell @ by_cell.mT / by_cell.shape[1])[-1])


def variance_left_open(change: float, before: float, after: float, at_most: float) -> float:
    """S, from the mean square `change` between the denoised pictures at two ratios of noise to signal.

    The smallest S that explains the change; `at_most` if none does that is smaller.
    """
    if at_most <= 0:
        return 0.0
    s = torch.logspace(-6, 0, _TRIED, dtype=torch.float64) * at_most
    grown = s * ((s + after**2).rsqrt() - (s + before**2).rsqrt())
    explains = (grown.square() >= change).nonzero()
    return float(s[explains[0, 0]]) if len(explains) else at_most
