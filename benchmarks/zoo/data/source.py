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


def pick_evenly(starts: Tensor, counts: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`n` members, classes drawn by the square root of their size: (n,) indices into all members, (n,) classes.

    So neither a class of 500 is seen 25 times as often as one of 20, nor a member of the small one as one of the large.
    """
    labels = torch.multinomial(counts.double().sqrt(), n, replacement=True, generator=generator)
    within = (torch.rand(n, generator=generator, dtype=torch.float64) * counts[labels]).long()
    return starts[labels] + within, labels
