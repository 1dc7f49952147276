"""Which emoji is in a picture: nearest reference over small shifts, turns and sizes. No network, no training."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

REFERENCES = Path(__file__).resolve().parent.parent / "models" / "emoji.png"
"""The artwork of all classes, RGBA 64 px, eight to a row, in class order."""
COLUMNS = 8
SPRITE = 64


def references(n: int, sheet: Path = REFERENCES) -> Tensor:
    """(n, 4, 64, 64) premultiplied RGBA in [0, 1]."""
    pixels = torch.from_numpy(numpy.array(Image.open(sheet).convert("RGBA"))).float() / 255
    rows = math.ceil(n / COLUMNS)
    tiles = pixels.view(rows, SPRITE, COLUMNS, SPRITE, 4).permute(0, 2, 4, 1, 3).reshape(-1, 4, SPRITE, SPRITE)[:n]
    return torch.cat((tiles[:, :3] * tiles[:, 3:], tiles[:, 3:]), 1)


@functools.lru_cache(maxsize=2)
def _templates(n: int, size: int, scales: tuple[float, ...], angles: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """(V * n, 4, size, size) placements of every reference, premultiplied RGBA, and (V * n,) their class."""
    # reduced before they are placed, not after: a little softer, eight times as fast
    sprites = F.interpolate(references(n), (size, size), mode="area")
    shifts = (-0.19, -0.095, 0.0, 0.095, 0.19)
    placed = []
    for scale in scales:
        for angle in angles:
            cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
            for x in shifts:
                for y in shifts:
                    theta = torch.tensor([[cos, -sin, -(cos * x - sin * y)], [sin, cos, -(sin * x + cos * y)]])
                    grid = F.affine_grid(theta.expand(n, 2, 3), [n, 4, size, size], align_corners=False)
                    placed.append(F.grid_sample(sprites, grid, align_corners=False))
    return torch.cat(placed), torch.arange(n).repeat(len(placed))


def distances(
    pictures: Tensor, n: int, scales: tuple[float, ...] = (0.82, 0.9), angles: tuple[float, ...] = (-0.14, 0.0, 0.14)
) -> Tensor:
    """Root mean squared difference of each picture to its best-placed reference of each class.

    The reference is drawn on the picture's own background, taken as the median of its border.

    Args:
        pictures: (B, 3, S, S) in [-1, 1].
        n: number of classes.
        scales: sizes to try.
        angles: turns to try, in radians.

    Returns:
        (B, n), in units of [0, 1] colour.
    """
    placed, label = _templates(n, pictures.shape[-1], scales, angles)
    colour, alpha = placed[:, :3].flatten(1), placed[:, 3].flatten(1)
    inner = torch.stack([(placed[:, c] * placed[:, 3]).sum((1, 2)) for c in range(3)], 1)  # <P_c, A>
    out = torch.empty(pictures.shape[0], n)
    for i, picture in enumerate((pictures.float().clamp(-1, 1) + 1) / 2):
        border = torch.cat((picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]), 1)
        background = border.median(1).values
        rest = picture - background[:, None, None]
        # |rest - (P - A background)|^2, expanded so that the placements need not be redrawn for each background
        cross = colour @ rest.flatten() - alpha @ torch.einsum("c,chw->hw", background, rest).flatten()
        norm = colour.square().sum(1) - 2 * inner @ background + background.square().sum() * alpha.square().sum(1)
        squared = (rest.square().sum() - 2 * cross + norm).clamp(min=0) / picture.numel()
        out[i] = torch.full((n,), math.inf).scatter_reduce(0, label, squared, "amin").sqrt()
    return out


def middle_frames(clips: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B, 3, H, W), the frame where every motion passes through the middle of the picture."""
    return clips[:, :, clips.shape[2] // 2]
