"""The trade-off of speed and quality as a picture: what was foreseen of each candidate, what real runs gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .picture import BACKGROUND, TEXT

SIZE = (1040, 640)
LEFT, TOP, RIGHT, BOTTOM = 90, 92, 40, 70
GRID = (48, 48, 54)
FAINT = (140, 140, 150)
COLOURS = ((96, 165, 250), (251, 191, 36), (52, 211, 153), (244, 114, 182), (167, 139, 250), (248, 113, 113))
# Drawn larger and made smaller again: PIL draws without smoothing.
FINER = 2

Point = tuple[float, float]


class Plot:
    """Points over speedup (x) and PSNR in dB (y). Points that are not finite are left out."""

    def __init__(self, title: str, points: Sequence[Point], x: str = "speedup", y: str = "PSNR, dB") -> None:
        finite = [point for point in points if all(map(math.isfinite, point))] or [(1.0, 40.0)]
        self._x = _padded([each[0] for each in finite])
        self._y = _padded([each[1] for each in finite])
        self._image = Image.new("RGB", tuple(FINER * side for side in SIZE), BACKGROUND)
        self._draw = ImageDraw.Draw(self._image)
        self._taken: list[tuple[float, float, float, float]] = []
        self._labels: list[tuple[Point, str]] = []
        self._legend: float = LEFT
        self._text((LEFT, 28), title, TEXT, 20, "lm", SIZE[0] - LEFT - RIGHT)
        for value, place in _ticks(*self._x, lambda v: self._at((v, self._y[0]))[0]):
            self._line([(place, TOP), (place, SIZE[1] - BOTTOM)], GRID)
            self._text(
                (place, SIZE[1] - BOTTOM + 18), f"{value:g}x" if x == "speedup" else f"{value:g}", FAINT, 14, "mm"
            )
        for value, place in _ticks(*self._y, lambda v: self._at((self._x[0], v))[1]):
            self._line([(LEFT, place), (SIZE[0] - RIGHT, place)], GRID)
            self._text((LEFT - 10, place), f"{value:g}", FAINT, 14, "rm")
        self._text(((LEFT + SIZE[0] - RIGHT) / 2, SIZE[1] - 22), x, FAINT, 15, "mm")
        self._text((14, TOP - 16), y, FAINT, 15, "lm")

    def curve(self, points: Sequence[Point], colour: int, name: str, labels: Sequence[str] = ()) -> None:
        """Small points, the best of them joined, their name in the legend where there is room, and their labels."""
        paint = COLOURS[colour % len(COLOURS)]
        finite = [point for point in points if all(map(math.isfinite, point))]
        best = [self._at(point) for point in frontier(finite)]
        if len(best) > 1:
            self._line(best, tuple(c // 2 for c in paint), 2)
        for point in finite:
            self._disc(self._at(point), 4, paint)
        for point, label in zip(points, labels, strict=False):
            if all(map(math.isfinite, point)):
                self._labels.append((self._at(point), label))
        if self._legend + 40 + _font(15).getlength(name) < SIZE[0] - RIGHT:
            self._disc((self._legend + 6, 64), 5, paint)
            self._legend += 20 + self._text((self._legend + 18, 64), name, TEXT, 15, "lm") + 26

    def least(self, value: float, across: bool) -> None:
        """The goal as a dashed line: a speed, or with `across` a PSNR."""
        low, high = self._y if across else self._x
        if not low <= value <= high:
            return
        x, y = self._at((self._x[0] if across else value, value if across else self._y[0]))
        along = range(LEFT, SIZE[0] - RIGHT, 12) if across else range(TOP, SIZE[1] - BOTTOM, 12)
        for start in along:
            dash = [(start, y), (start + 6, y)] if across else [(x, start), (x, start + 6)]
            self._line(dash, FAINT, 2)

    def run(self, foreseen: Point, measured: Point, name: str, chosen: bool) -> None:
        """A real run as a ring, with a line from where it was foreseen; filled if it was chosen."""
        if not all(map(math.isfinite, measured)):
            return
        place = self._at(measured)
        if all(map(math.isfinite, foreseen)):
            self._line([self._at(foreseen), place], TEXT, 2)
        self._disc(place, 9, TEXT)
        if not chosen:
            self._disc(place, 6, BACKGROUND)
        self._taken.append((place[0] - 9, place[1] - 9, place[0] + 9, place[1] + 9))
        self._labels.append((place, name))

    def picture(self) -> Tensor:
        """(1, H, W, 3) in [0, 1], on the CPU. Labels stand where nothing else does, so they come last."""
        for place, text in self._labels:
            self._label(place, text)
        self._labels = []
        small = self._image.resize(SIZE, Image.Resampling.LANCZOS)
        return torch.from_numpy(numpy.asarray(small).copy()).float()[None] / 255

    def _at(self, point: Point) -> Point:
        (x0, x1), (y0, y1) = self._x, self._y
        width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
        return LEFT + (point[0] - x0) / (x1 - x0) * width, TOP + (y1 - point[1]) / (y1 - y0) * height

    def _label(self, place: Point, text: str) -> None:
        """Beside the point, where neither a ring nor another label stands."""
        width = _font(15).getlength(text)
        for dx, dy in ((16, -20), (16, 20), (-16 - width, -20), (-16 - width, 20), (16, -44), (16, 44), (16, 68)):
            x, y = place[0] + dx, place[1] + dy
            box = (x, y - 10, x + width, y + 10)
            inside = box[0] > LEFT and box[2] < SIZE[0] - 4 and box[1] > TOP and box[3] < SIZE[1] - BOTTOM
            free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in self._taken)
            if inside and free:
                self._taken.append(box)
                self._draw.rectangle([FINER * side for side in box], BACKGROUND)
                self._text((x, y), text, TEXT, 15, "lm")
                return

    def _line(self, points: Sequence[Point], colour: tuple[int, ...], width: int = 1) -> None:
        self._draw.line([(FINER * x, FINER * y) for x, y in points], colour, FINER * width)

    def _disc(self, place: Point, radius: float, colour: tuple[int, ...]) -> None:
        x, y = place
        self._draw.ellipse([FINER * each for each in (x - radius, y - radius, x + radius, y + radius)], colour)

    def _text(
        self, place: Point, text: str, colour: tuple[int, ...], size: int, anchor: str, room: float = math.inf
    ) -> float:
        while size > 9 and _font(size).getlength(text) > room:
            size -= 1
        self._draw.text((FINER * place[0], FINER * place[1]), text, colour, _font(FINER * size), anchor=anchor)
        return _font(size).getlength(text)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those than which none is both faster and better, from left to right."""
    return [
        each for each in sorted(points) if not any(o != each and o[0] >= each[0] and o[1] >= each[1] for o in points)
    ]


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _padded(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.5
    return low - pad, high + pad


def _ticks(low: float, high: float, place: Callable[[float], float]) -> Iterator[Point]:
    """About six round values between the two, each with its place."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        yield round(i * step, 10), place(i * step)
