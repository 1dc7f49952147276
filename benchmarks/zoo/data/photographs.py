"""Crops of desktop wallpapers: photographs and paintings with a natural spectrum, without classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .fetch import CACHE, debian
from .source import Origin

SHORT_SIDE = 288
CROPS = 600


class Crops:
    """So many different crops of a few large pictures; see `source.Source`."""

    def __init__(self, origin: Origin, pictures: list[Tensor]) -> None:
        self.origin = origin
        self.classes: tuple[str, ...] = ()
        self.counts: tuple[int, ...] = ()
        self._pictures = pictures
        self._crops: dict[int, Tensor] = {}

    def draw(self, n: int, size: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert frames == 0, "photographs do not move"
        if size not in self._crops:
            self._crops[size] = self._crop(size)
        crops = self._crops[size]
        picked = torch.randint(len(crops), (n,), generator=generator)
        return crops[picked].float() / 127.5 - 1, torch.zeros(n, dtype=torch.int64)

    def _crop(self, size: int) -> Tensor:
        """(CROPS, 3, size, size) uint8, of every picture as many: a third of its height to all of it, anywhere."""
        generator = torch.Generator().manual_seed(0)
        cut = []
        for i in range(CROPS):
            picture = self._pictures[i % len(self._pictures)]
            height, width = picture.shape[1:]
            random = torch.rand(3, generator=generator).tolist()
            side = int(height * (0.33 + 0.67 * random[0] ** 2))
            top, left = int(random[1] * (height - side + 1)), int(random[2] * (width - side + 1))
            crop = picture[None, :, top : top + side, left : left + side].float()
            cut.append(F.interpolate(crop, (size, size), mode="bilinear", antialias=True, align_corners=False)[0])
        return torch.stack(cut).round().clamp(0, 255).byte()


def wallpapers() -> Crops:
    origin = Origin(
        "Debian `gnome-backgrounds` 43.1, `plasma-workspace-wallpapers` 5.27.5",
        "crops of wallpapers, photographs and paintings",
        "CC BY-SA 3.0 and 4.0, CC BY 2.0, LGPL-3 (see the packages)",
    )
    kept = CACHE / "wallpapers.pt"
    if not kept.is_file():
        files = []
        for package in ("gnome-backgrounds", "plasma-workspace-wallpapers"):
            for file in sorted(debian(package).rglob("*")):
                portrait = any(part in file.name for part in ("1080x1920", "720x1440", "1622x2880", "screenshot"))
                if file.suffix in (".jpg", ".png", ".webp") and file.is_file() and not portrait:
                    files.append(file)
        pictures = []
        for file in files:
            with Image.open(file) as opened:
                picture = opened.convert("RGB")
            by = SHORT_SIDE / min(picture.size)
            picture = picture.resize((round(picture.width * by), round(picture.height * by)), Image.LANCZOS)
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            pictures.append(pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous())
        torch.save(pictures, kept)
    return Crops(origin, torch.load(kept, weights_only=True))
