"""What a source of training data gives: batches of pictures or clips with their classes, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Origin:
    """For a model's card: the packages, what was taken of them, and under which licence they are."""

    packages: str
    content: str
    licence: str


class Source(Protocol):
    """`classes` is empty where there are none; `counts` says how many different pictures each class has."""

    origin: Origin
    classes: tuple[str, ...]
    counts: tuple[int, ...]

    def draw(self, n: int, size: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random members in [-1, 1], (n, 3, size, size), with `frames` (n, 3, frames, size, size); and (n,) classes."""
        ...


FEWEST, MOST = 20, 24
"""Different pictures of a class. So many that the noise decides which of them is drawn, and so few that a small network
learns them within an hour: one that only learnt blobs would be easier for a cache than any real model is."""


def evenly(n: int, most: int) -> list[int]:
    """At most `most` of `n` positions, evenly spread."""
    return list(range(n)) if n <= most else [i * n // most for i in range(most)]


def pick(counts: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` members, every class as often: (n,) indices into all members, which stand class by class, (n,) classes."""
    labels = torch.randint(len(counts), (n,), generator=generator)
    within = (torch.rand(n, generator=generator, dtype=torch.float64) * counts[labels]).long()
    return counts.cumsum(0)[labels] - counts[labels] + within, labels
