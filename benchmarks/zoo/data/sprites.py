"""Drawings on a transparent ground, in broad classes: emoji, clip art, stamps, the units of a game."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .fetch import CACHE, debian, npm
from .source import FEWEST, MOST, Origin, evenly, pick

SIDE = 72
"""Pixels of a kept drawing's side; what is drawn is averaged down from there."""
LARGEST = 8_000_000
"""Pixels of a file that is read at all; a few clip arts have hundreds of millions."""


class Sprites:
    """Drawings (N, 4, SIDE, SIDE) uint8, colour multiplied by alpha, sorted by class; see `source.Source`."""

    def __init__(self, origin: Origin, classes: tuple[str, ...], counts: tuple[int, ...], drawings: Tensor) -> None:
        self.origin = origin
        self.classes = classes
        self.counts = counts
        self._drawings = drawings
        self._counts = torch.tensor(counts)

    def draw(self, n: int, size: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert frames == 0, "drawings do not move"
        picked, labels = pick(self._counts, n, generator)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *shape, generator=generator)

        scale, shift = uniform(0.94, 1.0), uniform(-0.03, 0.03, 2)
        ground = uniform(0.86, 1.0, 3)[:, :, None, None]
        zero = torch.zeros(n)
        theta = torch.stack(
            (
                torch.stack((1 / scale, zero, shift[:, 0]), 1),
                torch.stack((zero, 1 / scale, shift[:, 1]), 1),
            ),
            1,
        )
        fine = 2 * size
        grid = F.affine_grid(theta, [n, 4, fine, fine], align_corners=False)
        drawings = self._drawings[picked].float() / 255
        drawn = F.avg_pool2d(F.grid_sample(drawings, grid, mode="bilinear", align_corners=False), 2)
        return (drawn[:, :3] + (1 - drawn[:, 3:]) * ground) * 2 - 1, labels


def sprites(name: str, origin: Origin, files: dict[str, list[Path]]) -> Sprites:
    """From files by class, `MOST` of each; of classes with fewer than `FEWEST` none. Kept in the cache once read."""
    kept = CACHE / f"{name}.pt"
    if not kept.is_file():
        drawings, classes, counts = [], [], []
        for label in sorted(files):
            read = list(_distinct(files[label]))
            if len(read) >= FEWEST:
                drawings += [read[i] for i in evenly(len(read), MOST)]
                classes.append(label)
                counts.append(min(len(read), MOST))
        stacked = torch.from_numpy(np.stack(drawings)).permute(0, 3, 1, 2).contiguous()
        torch.save({"drawings": stacked, "classes": classes, "counts": counts}, kept)
    data = torch.load(kept, weights_only=True)
    return Sprites(origin, tuple(data["classes"]), tuple(data["counts"]), data["drawings"])


def _distinct(files: Iterable[Path]) -> Iterable[np.ndarray]:
    """(SIDE, SIDE, 4) uint8, premultiplied, whole and centred; the same drawing is taken once, an empty one not."""
    seen = set()
    for file in sorted(files):
        try:
            with Image.open(file) as opened:
                if opened.width * opened.height > LARGEST:
                    continue
                picture = opened.convert("RGBA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # broken, or made for posters
            continue
        box = picture.getbbox()
        if box is None:
            continue
        picture = picture.crop(picture.getchannel("A").getbbox() or box)
        picture.thumbnail((SIDE - 4, SIDE - 4), Image.LANCZOS)
        if picture.width < SIDE - 4 and picture.height < SIDE - 4:  # small ones are enlarged
            by = (SIDE - 4) / max(picture.size)
            picture = picture.resize((max(1, round(picture.width * by)), max(1, round(picture.height * by))))
        whole = Image.new("RGBA", (SIDE, SIDE))
        whole.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
        pixels = np.asarray(whole).astype(np.uint16)
        pixels[..., :3] = pixels[..., :3] * pixels[..., 3:] // 255
        result = pixels.astype(np.uint8)
        key = result[::6, ::6].tobytes()
        if key not in seen:
            seen.add(key)
            yield result


def _by_folder(root: Path, pattern: str, depth: int, leave_out: tuple[str, ...] = ()) -> dict[str, list[Path]]:
    """Files by the first `depth` folders below `root`."""
    classes: dict[str, list[Path]] = defaultdict(list)
    for file in root.rglob(pattern):
        folders = file.relative_to(root).parts[:-1][:depth]
        if folders and folders[0] not in leave_out:
            classes["/".join(folders)].append(file)
    return classes


def fluent_emoji() -> Sprites:
    origin = Origin(
        "npm `@lobehub/fluent-emoji-3d` 1.1.0; classes by Unicode's subgroups from npm `emojibase-data` 16.0.3",
        "Microsoft's Fluent emoji, rendered in 3-D",
        "MIT",
    )
    pictures = npm("@lobehub/fluent-emoji-3d", "1.1.0") / "assets"
    names = npm("emojibase-data", "16.0.3")
    subgroups = {int(k): v for k, v in json.loads((names / "meta/groups.json").read_text())["subgroups"].items()}
    classes: dict[str, list[Path]] = defaultdict(list)
    for emoji in json.loads((names / "en/data.json").read_text()):
        for variant in (emoji, *emoji.get("skins", ())):
            code = variant["hexcode"].lower()
            file = next((f for c in (code, code.replace("-fe0f", "")) if (f := pictures / f"{c}.webp").is_file()), None)
            if file is not None and "subgroup" in emoji:
                classes[subgroups[emoji["subgroup"]]].append(file)
    return sprites("fluent", origin, classes)


def twitter_emoji() -> Sprites:
    origin = Origin(
        "npm `emoji-datasource-twitter` 16.0.0, classes by its subcategories",
        "Twitter's emoji, flat drawings",
        "CC BY 4.0 (drawings), MIT (package)",
    )
    package = npm("emoji-datasource-twitter", "16.0.0")
    classes: dict[str, list[Path]] = defaultdict(list)
    for emoji in json.loads((package / "emoji.json").read_text()):
        for variant in (emoji, *emoji.get("skin_variations", {}).values()):
            if variant["has_img_twitter"]:
                classes[emoji["subcategory"]].append(package / "img/twitter/64" / variant["image"])
    return sprites("twitter", origin, classes)


def clipart() -> Sprites:
    origin = Origin("Debian `openclipart-png` 0.18", "clip art by the folders of its collection", "public domain")
    root = debian("openclipart-png") / "usr/share/openclipart/png"
    return sprites("clipart", origin, _by_folder(root, "*.png", 2, ("shapes", "special", "unsorted", "computer")))


def stamps() -> Sprites:
    origin = Origin("Debian `tuxpaint-stamps-default` 2022.06.04", "photographs and drawings to stamp with", "GPL-2")
    root = debian("tuxpaint-stamps-default") / "usr/share/tuxpaint/stamps"
    return sprites("stamps", origin, _by_folder(root, "*.png", 1))


def wesnoth_units() -> Sprites:
    origin = Origin(
        "Debian `wesnoth-1.16-data` 1.16.9",
        "units of the game, every pose a picture, by people",
        "GPL-2+, CC BY-SA 4.0",
    )
    root = debian("wesnoth-1.16-data") / "usr/share/games/wesnoth/1.16/data/core/images/units"
    return sprites("units", origin, _by_folder(root, "*.png", 1))
