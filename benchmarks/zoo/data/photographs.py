"""Crops of desktop wallpapers, and a camera that moves over them: a natural spectrum, without classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .fetch import CACHE, debian
from .source import Origin

SHORT_SIDE = 288
CROPS = 600
SLOWEST, FASTEST = 0.03, 0.12
"""Of its view, how far a camera moves from one frame to the next."""


class Crops:
    """So many different crops of a few large pictures; clips see each from a camera that moves. See `source.Source`."""

    def __init__(self, origin: Origin, pictures: Sequence[Tensor]) -> None:
        self.origin = origin
        self.classes: tuple[str, ...] = ()
        self.counts: tuple[int, ...] = ()
        self._pictures = pictures
        self._crops: dict[tuple[int, int], Tensor] = {}

    def draw(self, n: int, size: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if (size, frames) not in self._crops:
            self._crops[size, frames] = self._crop(size, frames)
        crops = self._crops[size, frames]
        picked = torch.randint(len(crops), (n,), generator=generator)
        return crops[picked].float() / 127.5 - 1, torch.zeros(n, dtype=torch.int64)

    def _crop(self, size: int, frames: int) -> Tensor:
        """(CROPS, 3, size, size) uint8, of every picture as many: a third of its height to all of it, anywhere; with
        `frames` (CROPS, 3, frames, size, size)."""
        generator = torch.Generator().manual_seed(0)
        cut = []
        for i in range(CROPS):
            picture = self._pictures[i % len(self._pictures)]
            height, width = picture.shape[1:]
            random = torch.rand(3, generator=generator).tolist()
            side = int(height * (0.33 + 0.67 * random[0] ** 2))
            top, left = int(random[1] * (height - side + 1)), int(random[2] * (width - side + 1))
            down, right = _moves(top, left, side, height, width, frames, generator) if frames else (0, 0)
            crop = torch.stack(
                [
                    picture[:, top + down * t : top + down * t + side, left + right * t : left + right * t + side]
                    for t in range(max(frames, 1))
                ]
            ).float()
            cut.append(F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False))
        crops = torch.stack(cut).round().clamp(0, 255).byte()
        return crops.transpose(1, 2).contiguous() if frames else crops[:, 0]


def _moves(
    top: int, left: int, side: int, height: int, width: int, frames: int, generator: torch.Generator
) -> tuple[int, int]:
    """Pixels (down, right) from one frame to the next, within the picture and towards its farther edges."""
    speed, angle = torch.rand(2, generator=generator).tolist()
    step = side * (SLOWEST + (FASTEST - SLOWEST) * speed)
    moves = []
    for at, room, share in ((top, height - side, angle), (left, width - side, (1 - angle**2) ** 0.5)):
        towards = 1 if at < room / 2 else -1
        longest = max(at, room - at) // max(frames - 1, 1)
        moves.append(towards * min(round(step * share), longest))
    return moves[0], moves[1]


def wallpapers() -> Crops:
    origin = Origin(
        "Debian `gnome-backgrounds` 43.1, `plasma-workspace-wallpapers` 5.27.5",
        "crops of wallpapers, photographs and paintings",
        "CC BY-SA 3.0 and 4.0, CC BY 2.0, LGPL-3 (see the packages)",
    )
    return Crops(origin, _read("wallpapers", ("gnome-backgrounds", "plasma-workspace-wallpapers")))


def more_wallpapers() -> Crops:
    """None of which is among `wallpapers`."""
    origin = Origin("Debian `mate-backgrounds` 1.26.0", "a camera that moves over wallpapers", "CC BY-SA 4.0, GPL-2+")
    return Crops(origin, _read("more-wallpapers", ("mate-backgrounds",)))


def other_photographs() -> Crops:
    """None of which is among the others."""
    origin = Origin(
        "Debian `lomiri-wallpapers-16.04` and `lomiri-wallpapers-20.04` 20.04.0, `ukui-wallpapers` 20.04.3",
        "crops of photographs",
        "CC BY 4.0, CC BY-SA 3.0 and 4.0, CC0 (see the packages)",
    )
    packages = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "ukui-wallpapers")
    return Crops(origin, _read("other-photographs", packages))


def _read(name: str, packages: Iterable[str]) -> list[Tensor]:
    """The pictures of Debian packages (`pictures_of`)."""
    return pictures_of(
        name, (file for package in packages for file in sorted(debian(package).rglob("*")) if _is_wallpaper(file))
    )


def pictures_of(name: str, files: Iterable[Path]) -> list[Tensor]:
    """(3, H, W) uint8 each, `SHORT_SIDE` high or wide. Kept in the cache once read."""
    kept = CACHE / f"{name}.pt"
    if not kept.is_file():
        pictures = []
        for file in files:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            by = SHORT_SIDE / min(picture.size)
            picture = picture.resize((round(picture.width * by), round(picture.height * by)), Image.LANCZOS)
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            pictures.append(pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous())
        torch.save(pictures, kept)
    return torch.load(kept, weights_only=True)


def _is_wallpaper(file: Path) -> bool:
    portrait = any(part in file.name for part in ("1080x1920", "720x1440", "1622x2880", "screenshot"))
    return file.suffix in (".jpg", ".png", ".webp") and file.is_file() and not portrait
