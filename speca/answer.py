"""What a call returns: of a speculated row the verified output or the direct forecast or what lies between, and all
rows joined. Pure."""

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


def answer(speculated: Speculated, rows: Sequence[int], direct_shares: Sequence[float]) -> Part:
    """The accepted rows: the verified output, moved towards the direct forecast by each row's share of it."""
    picked = [speculated.rows.index(row) for row in rows]
    output = []
    for verified, direct in zip(speculated.verified, speculated.direct, strict=True):
        if len(picked) < len(speculated.rows):
            verified, direct = verified[picked], direct[picked]
        if any(direct_shares):
            weight = torch.tensor(direct_shares, dtype=torch.float32, device=verified.device)
            weight = weight.view(-1, *[1] * (verified.ndim - 1))
            verified = torch.lerp(verified.float(), direct.float(), weight).to(verified.dtype)
        output.append(verified)
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


def best_direct_shares(speculated: Speculated, exact: Part) -> dict[int, float]:
    """By row, where a forecast was thrown away and the truth is known: which way came closer to it.

    The share s in [0, 1] is the least-squares solution of verified + s (direct - verified) = exact. Neither way is
    better for every model: the last block adds what only this call's noise level tells, and passes on the errors
    of features that are larger than their share of the output. Since answers begin half-way that is worth 0.1 dB or
    less on the zoo's fifteen models (benchmarks/results/ablation.md).
    """
    both = [row for row in speculated.rows if row in exact.rows]
    if not both:
        return {}
    on = gap_on_gap = torch.zeros(len(both), device=exact.output[0].device)
    here, there = [speculated.rows.index(row) for row in both], [exact.rows.index(row) for row in both]
    for verified, direct, truth in zip(speculated.verified, speculated.direct, exact.output, strict=True):
        start = verified[here].float().flatten(1)
        gap = direct[here].float().flatten(1) - start
        on = on + (gap * (truth[there].float().flatten(1) - start)).sum(dim=1)
        gap_on_gap = gap_on_gap + gap.square().sum(dim=1)
    shares = torch.nan_to_num(on / gap_on_gap, nan=0.0).clamp(0.0, 1.0).tolist()
    return dict(zip(both, shares, strict=True))


def join(parts: Sequence[Part], n_rows: int) -> Tensors:
    """The parts' rows in the batch's order. A part that is the whole batch is returned unchanged."""
    if len(parts) == 1 and len(parts[0].rows) == n_rows:
        return parts[0].output
    joined = tuple(t.new_empty((n_rows, *t.shape[1:])) for t in parts[0].output)
    for part in parts:
        for whole, tensor in zip(joined, part.output, strict=True):
            whole[list(part.rows)] = tensor
    return joined
