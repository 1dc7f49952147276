"""What models made: pictures and moving previews of ComfyUI's own workflow templates. Without classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageSequence
from torch import Tensor

from .fetch import CACHE, wheel
from .photographs import Crops, pictures_of
from .source import Origin

PICTURES = ("comfyui-workflow-templates-media-image", "0.3.160")
VIDEOS = ("comfyui-workflow-templates-media-video", "0.3.101")
SIDE = 128
"""Pixels of a kept recording's shorter side."""
APART = 3
"""Recorded frames from one frame of a clip to the next."""
LONGEST = 48
"""Frames of a recording that are kept."""
CLIPS = 600


class Previews(Crops):
    """Clips of recordings, (3, L, H, W) uint8 each."""

    def _crop(self, size: int, frames: int) -> Tensor:
        """(CLIPS, 3, frames, size, size) uint8, of every recording as many."""
        assert frames > 0, "these are clips"
        return torch.stack(list(self._cut(size, frames)))

    def _cut(self, size: int, frames: int) -> Iterator[Tensor]:
        """(3, frames, size, size) uint8 each: half of a recording's shorter side to all of it, anywhere."""
        generator = torch.Generator().manual_seed(0)
        for i in range(CLIPS):
            recording = self._pictures[i % len(self._pictures)]
            length, height, width = recording.shape[1:]
            share, *places = torch.rand(4, generator=generator).tolist()
            side = int(min(height, width) * (0.5 + 0.5 * share))
            room = (length - APART * (frames - 1) - 1, height - side, width - side)
            start, top, left = (int(place * (most + 1)) for place, most in zip(places, room, strict=True))
            clip = recording[:, start : start + APART * (frames - 1) + 1 : APART]
            clip = clip[:, :, top : top + side, left : left + side].transpose(0, 1).float()
            small = F.interpolate(clip, (size, size), mode="bilinear", antialias=True, align_corners=False)
            yield small.round().clamp(0, 255).byte().transpose(0, 1)


def previews() -> Previews:
    origin = _origin("clips of the moving previews, most made by video models", PICTURES, VIDEOS)
    kept = CACHE / "previews.pt"
    if not kept.is_file():
        torch.save([_recording(file) for file in _files(PICTURES, VIDEOS) if _frames(file) > APART * 4], kept)
    return Previews(origin, torch.load(kept, weights_only=True))


def stills() -> Crops:
    origin = _origin("crops of the pictures, most made by picture models", PICTURES)
    return Crops(origin, pictures_of("stills", (file for file in _files(PICTURES) if _frames(file) == 1)))


def _origin(content: str, *packages: tuple[str, str]) -> Origin:
    named = " and ".join(f"`{package}` {version}" for package, version in packages)
    return Origin(f"PyPI {named}", content, "MIT (see the packages)")


def _files(*packages: tuple[str, str]) -> list[Path]:
    return [file for package in packages for file in sorted(wheel(*package).rglob("*.webp"))]


def _frames(file: Path) -> int:
    with Image.open(file) as opened:
        return getattr(opened, "n_frames", 1)


def _recording(file: Path) -> Tensor:
    """(3, L, H, W) uint8, `SIDE` high or wide."""
    with Image.open(file) as opened:
        by = SIDE / min(opened.size)
        side = (round(opened.width * by), round(opened.height * by))
        frames = [
            np.asarray(frame.convert("RGB").resize(side, Image.BOX))
            for _, frame in zip(range(LONGEST), ImageSequence.Iterator(opened), strict=False)
        ]
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).contiguous()
