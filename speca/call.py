"""What is asked: one evaluation of the network by the sampler, and what the network can do with it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .schedule import UNKNOWN, NoiseLevel, Schedule

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Latent:
    """What a call was given, x of (B, ...), and the noise level that it has."""

    x: Tensor
    level: NoiseLevel

    def row(self, index: int) -> Latent:
        return replace(self, x=self.x[index : index + 1])


@dataclass(frozen=True)
class Call:
    """One evaluation of the network, as the sampler asks for it.

    time: what the network itself is told of the noise level; anchors and forecasts live on this axis.
    streams: one key per row of the batch; row r holds sample `r % n_samples`, so a sample has a row per conditioning.
    part: of the picture that the call is about (window, tile, area); what conditionings of one part do goes together
        (`together`). None where that is not known.
    kind: calls of one kind cost the same (shape of the batch); used to price a call that was not computed in full.
    schedule: the run's noise levels. level: this call's own, None if it is not known.
    ahead: the sigma at which the sampler's step from here ends; None if its steps are not known to be Euler's.
    latent: what the sampler gave, (B, ...); None if it is not one tensor.
    renoised: the sampler adds fresh noise as it goes. The latent holds news then that no anchor can know: features are
        forecast relative to the embedded input, outputs relative to what follows from the latent alone.
    """

    time: float
    sigma: float
    step: int
    progress: float
    n_samples: int
    streams: tuple[Hashable, ...]
    conds: tuple[int, ...] = (0,)
    part: Hashable = None
    kind: Hashable = None
    window: int | None = None
    schedule: Schedule = UNKNOWN
    level: NoiseLevel | None = None
    ahead: float | None = None
    latent: Latent | None = None
    renoised: bool = False

    def rows_of(self, samples: Sequence[int]) -> list[int]:
        wanted = set(samples)
        return [row for row in range(len(self.streams)) if row % self.n_samples in wanted]

    def selection(self, rows: Sequence[int]) -> Sequence[int] | None:
        """Rows as a `Network` takes them: None for all."""
        return None if len(rows) == len(self.streams) else rows


@dataclass(frozen=True)
class Exact:
    """What a full call computed: the features entering the verification block and the output, (R, ...) each.

    `embedded` is what would have entered that block without the blocks before it. It and `features` are copies for the
    session to keep; None where they were not asked for or not to be had.
    """

    features: Tensors | None
    output: Tensors
    embedded: Tensors | None = None


class Network(Protocol):
    """The network bound to one call's inputs, (B, ...). `rows` picks R of the B rows; None takes all as they are.

    `speculate` puts the features of some rows on the embedded input: those of which `on_embedded`, (R,), says so.
    """

    splittable: bool
    device: torch.device

    def full(self, rows: Sequence[int] | None, keep_features: bool, keep_embedded: bool = False) -> Exact: ...

    def speculate(self, features: Tensors, rows: Sequence[int] | None, on_embedded: Sequence[bool] = ()) -> Tensors: ...


class ForecastImpossibleError(Exception):
    """Raised by a `Network` that cannot run on the forecast features; the call is then computed in full."""

    def __init__(self, reason: str = "not_possible") -> None:
        super().__init__(reason)
        self.reason = reason
