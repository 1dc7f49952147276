"""What a call returns: of a speculated row what lies half-way between the verified output and the direct forecast, and
all rows joined. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .call import Tensors


@dataclass(frozen=True)
class Part:
    """Rows of a batch and their outputs."""

    rows: Sequence[int]
    output: Tensors


@dataclass(frozen=True)
class Speculated:
    """An output of some rows, reached in two ways: `verified` by the last block and the head, run for real on the
    forecast features; `direct` forecast from past outputs."""

    rows: Sequence[int]
    verified: Tensors
    direct: Tensors


def answer(speculated: Speculated, rows: Sequence[int]) -> Part:
    """The accepted rows, each the mean of its two ways.

    Neither is better for every model: the last block adds what only this call's noise level tells, and passes on the
    errors of features that are larger than their share of the output. Learning from rejections, where the truth is
    known, which way comes closer is worth -0.1 dB on the zoo's fifteen models.
    """
    picked = [speculated.rows.index(row) for row in rows]
    output = []
    for verified, direct in zip(speculated.verified, speculated.direct, strict=True):
        if len(picked) < len(speculated.rows):
            verified, direct = verified[picked], direct[picked]
        output.append(torch.lerp(verified.float(), direct.float(), 0.5).to(verified.dtype))
    return Part(rows, tuple(output))


def beside_direct(part: Part, speculated: Speculated) -> dict[int, Tensors]:
    """By row, what its answer adds to the direct forecast, (1, ...) per tensor: what the check has taught, which is
    much the same at the next call (`draft.forecast_output`)."""
    beside = {}
    for i, row in enumerate(part.rows):
        at = speculated.rows.index(row)
        pairs = zip(part.output, speculated.direct, strict=True)
        beside[row] = tuple(answered[i : i + 1] - direct[at : at + 1] for answered, direct in pairs)
    return beside


def join(parts: Sequence[Part], n_rows: int) -> Tensors:
    """The parts' rows in the batch's order. A part that is the whole batch is returned unchanged."""
    if len(parts) == 1 and len(parts[0].rows) == n_rows:
        return parts[0].output
    joined = tuple(t.new_empty((n_rows, *t.shape[1:])) for t in parts[0].output)
    for part in parts:
        for whole, tensor in zip(joined, part.output, strict=True):
            whole[list(part.rows)] = tensor
    return joined
