"""Clips of games that play themselves: 16 procedurally drawn arcade games, and rooms seen in the first person."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .fetch import CACHE, python_with
from .source import MOST, Origin

HERE = Path(__file__).resolve().parent


class Clips:
    """So many clips of each game, cut out of its recordings; see `source.Source`.

    recordings: (N, L, 64, 64, 3) uint8 by game, and (N, L) whether a frame goes on from the one before. apart: recorded
    frames from one frame of a clip to the next.
    """

    def __init__(self, origin: Origin, recordings: dict[str, tuple[Tensor, Tensor]], apart: int) -> None:
        self.origin = origin
        self.classes = tuple(recordings)
        self.counts = (MOST,) * len(recordings)
        self._recordings = list(recordings.values())
        self._apart = apart
        self._clips: dict[tuple[int, int], Tensor] = {}

    def draw(self, n: int, size: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if (size, frames) not in self._clips:
            self._clips[size, frames] = torch.stack([self._cut(r, size, max(frames, 1)) for r in self._recordings])
        labels = torch.randint(len(self.classes), (n,), generator=generator)
        picked = torch.randint(MOST, (n,), generator=generator)
        clips = self._clips[size, frames][labels, picked].float() / 127.5 - 1
        return (clips if frames else clips[:, :, 0]), labels

    def _cut(self, recording: tuple[Tensor, Tensor], size: int, frames: int) -> Tensor:
        """(MOST, 3, frames, size, size) uint8: clips of one game that no new episode interrupts."""
        recorded, goes_on = recording
        generator = torch.Generator().manual_seed(0)
        length = self._apart * (frames - 1) + 1
        clips: list[Tensor] = []
        while len(clips) < MOST:
            which = int(torch.randint(recorded.shape[0], (1,), generator=generator))
            start = int(torch.randint(recorded.shape[1] - length + 1, (1,), generator=generator))
            if bool(goes_on[which, start + 1 : start + length].all()):
                clips.append(recorded[which, start : start + length : self._apart])
        pictures = torch.stack(clips).permute(0, 1, 4, 2, 3).flatten(0, 1).float()
        pictures = F.interpolate(pictures, (size, size), mode="area").round().byte()
        return pictures.unflatten(0, (MOST, frames)).transpose(1, 2).contiguous()


def _recorded(name: str, *requirements: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What `record_<name>.py` leaves in the cache, in an environment of its own."""
    folder = CACHE / name
    if not (folder / "ready").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        python, script = python_with(*requirements), HERE / f"record_{name}.py"
        subprocess.run([str(python), str(script), str(folder)], check=True, cwd=folder)
        (folder / "ready").touch()
    import numpy

    recordings = {}
    for file in sorted(folder.glob("*.npz")):
        with numpy.load(file) as arrays:
            recordings[file.stem] = (torch.from_numpy(arrays["frames"]), torch.from_numpy(arrays["goes_on"]))
    return recordings


def arcade() -> Clips:
    origin = Origin("PyPI `procgen2` 0.10.7", "16 procedurally drawn games, played at random", "MIT")
    return Clips(origin, _recorded("arcade", "procgen2==0.10.7", "gym3==0.3.3"), apart=2)


def doom() -> Clips:
    origin = Origin(
        "PyPI `vizdoom` 1.3.2", "the scenarios of ViZDoom (Freedoom), played at random", "MIT; Freedoom BSD"
    )
    return Clips(origin, _recorded("doom", "vizdoom==1.3.2"), apart=1)
