"""Verification: how wrong a forecast is, and whether that is too much.

The paper (section 3.2) compares the forecast features of one deep block with that block's exact output,
e = |F_hat - F| / (|F| + 1e-8). Here the *model's output* is compared: the last block and the head run for real on the
forecast features, and their output is held against the output forecast directly from past outputs. Its rank
correlation with the true error of the accepted output is higher, it costs nothing to keep, and the sampler
receives what lies between the two, where past rejections taught (`answer`).

Both outputs descend from the same anchors, so they share errors that their difference cannot show: `likely_error` adds
what it can know of those. What is compared with the threshold is that error times what it costs the final picture
(`schedule.error_weights`), summed over the forecasts since the last full call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# A sum of errors grows from one forecast to the next: a wrong output moves the latent, and the next forecast is checked
# as if it had not. Not where the sampler adds noise, which drowns it. On the zoo's seventeen models at 28 steps, 1.2 in
# its place is -1.0 dB at 2x, -0.4 at 3x, -0.2 at 4x and +0.4 at 5x (benchmarks/results/left-out.md). Each of growth,
# `likely_error` and `policy.expected_error` makes up for part of another: without all three it is 1.2 dB, and 2.2 of
# the worst samples (benchmarks/results/ablation.md).
CARRIED_GROWTH = 1.4

EPSILON = 1e-8  # the paper's; keeps an all-zero output from dividing by zero

ErrorMetric = Callable[[Tensor, Tensor], Tensor]


def relative_l2(forecast: Tensor, exact: Tensor) -> Tensor:
    """|F_hat - F|_2 / (|F|_2 + eps) per sample, section 3.2. (B, ...) x (B, ...) -> (B,) in fp32."""
    f, e = _flat(forecast, exact)
    return (f - e).norm(dim=1) / (e.norm(dim=1) + EPSILON)


def relative_l1(forecast: Tensor, exact: Tensor) -> Tensor:
    """sum|F_hat - F| / (sum|F| + eps) per sample. (B, ...) x (B, ...) -> (B,) in fp32."""
    f, e = _flat(forecast, exact)
    return (f - e).abs().sum(dim=1) / (e.abs().sum(dim=1) + EPSILON)


def elementwise_l1(forecast: Tensor, exact: Tensor) -> Tensor:
    """mean(|F_hat - F| / (|F| + eps)) per sample: the released code's rule, heavy-tailed where F is near zero."""
    f, e = _flat(forecast, exact)
    return ((f - e).abs() / (e.abs() + EPSILON)).mean(dim=1)


def cosine(forecast: Tensor, exact: Tensor) -> Tensor:
    """1 - cos(F_hat, F) per sample: blind to a wrong length. (B, ...) x (B, ...) -> (B,) in fp32."""
    f, e = _flat(forecast, exact)
    return 1.0 - torch.nn.functional.cosine_similarity(f, e, dim=1, eps=EPSILON)


ERROR_METRICS: dict[str, ErrorMetric] = {
    "relative_l2": relative_l2,
    "relative_l1": relative_l1,
    "elementwise_l1": elementwise_l1,
    "cosine": cosine,
}


def likely_error(difference: Tensor, reach: Tensor) -> Tensor:
    """How wrong an output is likely to be, (R,): the geometric mean of two errors by the same metric, (R,) each.

    difference: between the verified output and the direct forecast. reach: between the direct forecast and what the
    newest anchor says again (`draft.Draft.other`); the farther a forecast goes, the larger the error that both its
    outputs share. Never less than the difference. Not in the paper. Pictures at equal speed hardly tell (0.3 dB on
    eleven models of the zoo, benchmarks/results/ablation.md), honesty does: judged by the difference alone, 0 to 32 %
    of what is forecast is over twice as wrong as was said, in the place of 0 to 12 (five of these models;
    benchmarks/README.md).
    """
    return (difference * torch.maximum(difference, reach)).sqrt()


def likely_error_of_guesses(difference: Tensor, reach: Tensor) -> Tensor:
    """The same where nothing tells which way the output moves, with one anchor: the verified output, its repetition
    and what follows from the latent are three guesses, and how far they lie apart is added up.

    On the zoo's FLUX and Cosmos 1 that is 0.6 to 1.6 times the true error; the difference alone is 0.3 to 0.8 times
    it. Pictures at equal speed hardly tell (0.1 dB, benchmarks/results/ablation.md). Not in the paper.
    """
    return difference + reach


def row_errors(
    metric: str, verified: Sequence[Tensor], direct: Sequence[Tensor], other: Sequence[Tensor], guessed: Sequence[bool]
) -> Tensor:
    """How wrong each row is likely to be in each of its T tensors, by a metric of `ERROR_METRICS`: (R, ...) per tensor
    -> (T, R) in fp32. It is as wrong as the worst of them.

    `verified`, `direct` and `other` are the output in three ways (`answer.Speculated`, `draft.Draft`); `guessed` tells
    of which rows nothing tells which way their output moves.
    """
    errors = each_tensor(metric, direct, verified), each_tensor(metric, other, direct)
    if not any(guessed):
        return likely_error(*errors)
    rows = torch.tensor(list(guessed), device=errors[0].device)
    return torch.where(rows, likely_error_of_guesses(*errors), likely_error(*errors))


def each_tensor(metric: str, forecast: Sequence[Tensor], exact: Sequence[Tensor]) -> Tensor:
    """The error of each of T tensors: (R, ...) per tensor -> (T, R) in fp32."""
    return torch.stack([ERROR_METRICS[metric](f, e) for f, e in zip(forecast, exact, strict=True)])


def worst_tensor(metric: str, forecast: Sequence[Tensor], exact: Sequence[Tensor]) -> Tensor:
    """A row is as wrong as the worst of its tensors (amax keeps NaN): (R, ...) per tensor -> (R,) in fp32."""
    return each_tensor(metric, forecast, exact).amax(dim=0)


def growth(renoised: bool) -> float:
    """Of a sum of errors from one call to the next."""
    return 1.0 if renoised else CARRIED_GROWTH


@dataclass(frozen=True)
class ErrorSum:
    """What the forecasts since a full call have cost so far; a full call begins a new one.

    total: their weighted errors, grown. added: what the last of them added, by its weight.
    """

    total: float = 0.0
    added: float = 0.0

    def carried(self, renoised: bool) -> float:
        """What it counts for at the next call."""
        return growth(renoised) * self.total

    def expected(self, weight: float, renoised: bool, farther: float = 1.0) -> float:
        """The sum after the next forecast, if that adds `farther` times as much as the last one: as it reaches farther,
        once is the least."""
        return self.carried(renoised) + weight * farther * self.added

    def after(self, total: float, weight: float, renoised: bool, accumulate: bool) -> ErrorSum:
        """With a forecast more, accepted at `total`."""
        added = (total - self.carried(renoised)) / weight if weight > 0 else self.added
        return ErrorSum(total if accumulate else 0.0, added)


def threshold_at(progress: float, threshold: float, end_factor: float) -> float:
    """tau_0 * beta^((T - t) / T) (section 3.3); `progress` is (T - t) / T, 0 at the run's start and 1 at its end."""
    return threshold * end_factor**progress


@dataclass(frozen=True)
class Verdict:
    """The error that was compared with the threshold, and a code of `events.REASONS`."""

    error: float
    reason: Literal["within", "over", "not_finite"]

    @property
    def accepted(self) -> bool:
        return self.reason == "within"


def judge(error: float, threshold: float, accumulated: float = 0.0) -> Verdict:
    """Accept if `accumulated + error` is finite and at most `threshold`. An error that is not a number rejects."""
    total = accumulated + error
    if not math.isfinite(total):
        return Verdict(math.inf, "not_finite")
    return Verdict(total, "within" if total <= threshold else "over")


def _flat(forecast: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    if forecast.shape != exact.shape:
        raise ValueError(f"forecast has shape {tuple(forecast.shape)}, exact has {tuple(exact.shape)}")
    return forecast.flatten(1).float(), exact.flatten(1).float()
