"""A comparison as a picture: without SpeCa, with it, and what differs, side by side under their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# The difference is shown so many times stronger: 1/40 of full brightness, hardly seen, becomes a fifth.
AMPLIFIED = 8
# A smaller panel is enlarged to at least this height, pixel by pixel; its name would not fit over it.
MIN_HEIGHT = 256
BACKGROUND = (24, 24, 27)
TEXT = (228, 228, 231)


def compared(uncached: Tensor, speca: Tensor, titles: Sequence[str]) -> Tensor:
    """One picture for each sample, (B, H', W', 3) in [0, 1], on the CPU.

    Of pictures, (B, H, W, C) in [0, 1], a row of three panels under their `titles`; of videos, (B, T, H, W, C), two
    rows: the middle frame, and the one that differs most.
    """
    samples = [
        _stacked(a, b, titles) if a.ndim == 4 else _row(a, b, titles)
        for a, b in zip(uncached.float().cpu(), speca.float().cpu(), strict=True)
    ]
    return torch.stack(samples)


def _stacked(a: Tensor, b: Tensor, titles: Sequence[str]) -> Tensor:
    n = a.shape[0]
    middle, worst = n // 2, int((a - b).square().flatten(1).mean(dim=1).argmax())
    first, *rest = titles
    rows = [
        _row(a[frame], b[frame], [f"{first}, {name} frame ({frame + 1} of {n})", *rest])
        for frame, name in ((middle, "middle"), (worst, "worst"))
    ]
    return torch.cat(rows)


def _row(a: Tensor, b: Tensor, titles: Sequence[str]) -> Tensor:
    difference = ((a - b).abs() * AMPLIFIED).clamp(0, 1)
    panels = [_enlarged(_rgb(panel)) for panel in (a, b, difference)]
    height, width, _ = panels[0].shape
    gap = max(8, height // 64)
    strip = max(28, height // 20)
    canvas = Image.new("RGB", (3 * width + 4 * gap, height + strip + gap), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = gap + i * (width + gap)
        draw.text((left, strip / 2), title, TEXT, _font(title, width, int(strip * 0.55)), anchor="lm")
        canvas.paste(Image.fromarray((panel.nan_to_num().clamp(0, 1) * 255).round().byte().numpy()), (left, strip))
    return torch.from_numpy(numpy.asarray(canvas).copy()).float() / 255


def _font(text: str, width: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """As large as fits."""
    while size > 8 and ImageFont.load_default(size).getlength(text) > width:
        size -= 1
    return ImageFont.load_default(size)


def _rgb(picture: Tensor) -> Tensor:
    """(H, W, C) of one, three or four channels as three."""
    return picture.expand(-1, -1, 3) if picture.shape[-1] == 1 else picture[..., :3]


def _enlarged(picture: Tensor) -> Tensor:
    times = -(-MIN_HEIGHT // picture.shape[0])
    return picture.repeat_interleave(times, 0).repeat_interleave(times, 1)
