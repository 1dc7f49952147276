"""Forecasters: pure functions from times to the weights of the anchors.

Every forecast here is linear in the anchors: F_hat(t) = sum_j w_j F(t_j). A forecaster therefore maps the anchors'
times and the wanted time to weights, on plain floats; the tensors are combined elsewhere (`history.combine`), once,
whatever the formula. Times may run in either direction and at any spacing; they must be distinct.

The sum of |w_j| is the forecast's *noise gain*: how far errors in the anchors (rounding, the sampler's noise, the
part of the features that is no polynomial) are amplified. It is known before any tensor is touched. High orders from
anchors that lie close together, used far ahead, have gains of 10 to 50 and ruin the picture, so `forecast_weights`
goes up in order only as far as the gain stays within a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

MAX_ORDER = 4

Forecaster = Callable[[Sequence[float], float, int], list[float]]


def reuse(times: Sequence[float], t: float, order: int) -> list[float]:
    """The newest anchor as it is, whatever the order. `times` run from the oldest to the newest anchor."""
    return [0.0] * (len(times) - 1) + [1.0]


def newton(times: Sequence[float], t: float, order: int) -> list[float]:
    """The polynomial of degree `order` through the newest `order + 1` anchors, in Lagrange's form.

    Exact on polynomials of that degree on any spacing. With fewer anchors the degree is what they allow.
    """
    n = min(order + 1, len(times))
    nodes = times[len(times) - n :]
    weights = [
        math.prod((t - t_m) / (t_j - t_m) for m, t_m in enumerate(nodes) if m != j) for j, t_j in enumerate(nodes)
    ]
    return [0.0] * (len(times) - n) + weights


def taylor(times: Sequence[float], t: float, order: int) -> list[float]:
    """The released TaylorSeer and SpeCa rule: F + sum_i d_i (t - t_0)^i / i! (arXiv 2503.06923, eq. 8).

    d_i is built by differencing d_(i-1) over the *last* gap only, so on uneven spacing the d_i are not divided
    differences, and (t - t_0)^i / i! stands where Newton's form has a rising product: exact up to degree 1 only.
    """
    n = min(order + 1, len(times))
    derivatives = _last_gap_derivatives(times, n)
    k = t - times[-1]
    return _sum_rows([[d * k**i / math.factorial(i) for d in row] for i, row in enumerate(derivatives)])


def hermite(times: Sequence[float], t: float, order: int, sigma: float = 0.5) -> list[float]:
    """HiCache's damped forecast: Taylor's powers of k replaced by sigma^i H_i(sigma k), H_i physicists' Hermite.

    arXiv 2508.16984, eq. 9. k counts calls of the last gap's length, as in the paper's step index.
    """
    n = min(order + 1, len(times))
    derivatives = _last_gap_derivatives(times, n)
    gap = times[-1] - times[-2] if len(times) > 1 else 1.0
    k = (t - times[-1]) / gap
    rows = [derivatives[0]]
    h_previous, h = 1.0, 2.0 * sigma * k
    for i in range(1, n):
        basis = sigma**i * h / math.factorial(i)
        rows.append([d * gap**i * basis for d in derivatives[i]])
        h_previous, h = h, 2.0 * sigma * k * h - 2.0 * i * h_previous
    return _sum_rows(rows)


def ridge(times: Sequence[float], t: float, order: int, penalty: float = 0.1) -> list[float]:
    """A ridge-regularised Chebyshev fit of degree `order` to all anchors, as Spectrum has it.

    Times are mapped to [-1, 1] over anchors and target. The constant is not penalised, so a constant is exact.
    """
    low, high = min(*times, t), max(*times, t)
    half = (high - low) / 2 or 1.0

    def basis(time: float) -> list[float]:
        u = (time - low) / half - 1.0
        return [math.cos(k * math.acos(max(-1.0, min(1.0, u)))) for k in range(min(order, len(times) - 1) + 1)]

    design = torch.tensor([basis(time) for time in times], dtype=torch.float64)
    target = torch.tensor(basis(t), dtype=torch.float64)
    penalties = torch.full((design.shape[1],), penalty, dtype=torch.float64)
    penalties[0] = 1e-12
    gram = design.T @ design + torch.diag(penalties)
    weights = design @ torch.linalg.solve(gram, target)
    # The unpenalised constant keeps the sum at 1 up to rounding; restore it exactly.
    return (weights / weights.sum()).tolist()


FORECASTERS: dict[str, Forecaster] = {
    "newton": newton,
    "taylor": taylor,
    "hermite": hermite,
    "ridge": ridge,
    "reuse": reuse,
}


def noise_gain(weights: Sequence[float]) -> float:
    """Sum of |w_j|: the factor by which errors of the anchors may grow. 1 for plain reuse."""
    return sum(abs(w) for w in weights)


@dataclass(frozen=True)
class Forecast:
    """Weights of the anchors (oldest first), the order actually used and its noise gain.

    An order of 1.4 is four tenths of the way from the straight line to the parabola.
    """

    weights: tuple[float, ...]
    order: float
    noise_gain: float


def forecast_weights(forecaster: str, times: Sequence[float], t: float, order: int, gain_limit: float) -> Forecast:
    """The forecast of the highest order up to `order`, fractions included, whose noise gain is within `gain_limit`.

    Where order m + 1 would amplify too much and order m does not, the weights go from one to the other as far as the
    limit allows. So a forecast that reaches far ahead does not fall back to a copy of the last anchor, and nothing
    jumps when a lead passes the limit. Raises ValueError without anchors or for repeated times.
    """
    if not times:
        raise ValueError("a forecast needs at least one anchor")
    if len(set(times)) != len(times):
        raise ValueError(f"anchors must have distinct times, got {list(times)}")
    weigh = FORECASTERS[forecaster]
    within = reuse(times, t, 0)
    for degree in range(1, min(order, len(times) - 1) + 1):
        weights = weigh(times, t, degree)
        if noise_gain(weights) > gain_limit:
            share = _share_within(within, weights, gain_limit)
            mixed = _mix(within, weights, share)
            return Forecast(tuple(mixed), degree - 1 + share, noise_gain(mixed))
        within = weights
    return Forecast(tuple(within), min(order, len(times) - 1), noise_gain(within))


def _mix(one: Sequence[float], other: Sequence[float], share: float) -> list[float]:
    return [(1 - share) * a + share * b for a, b in zip(one, other, strict=True)]


def _share_within(one: Sequence[float], other: Sequence[float], gain_limit: float) -> float:
    """The largest share of `other` beside `one` whose gain is within the limit. The gain is convex in the share, and
    within the limit at 0, so halving finds the one crossing."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if noise_gain(_mix(one, other, middle)) <= gain_limit:
            low = middle
        else:
            high = middle
    return low


def _last_gap_derivatives(times: Sequence[float], n: int) -> list[list[float]]:
    """Rows of weights of d_0 .. d_(n-1) at the newest anchor.

    d_i(j) = (d_(i-1)(j) - d_(i-1)(j-1)) / (t_j - t_(j-1)).
    """
    m = len(times)
    table = [[1.0 if c == j else 0.0 for c in range(m)] for j in range(m)]
    rows = [table[-1]]
    for i in range(1, n):
        table = [
            table[j]
            if j < i
            else [(a - b) / (times[j] - times[j - 1]) for a, b in zip(table[j], table[j - 1], strict=True)]
            for j in range(m)
        ]
        rows.append(table[-1])
    return rows


def _sum_rows(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) for column in zip(*rows, strict=True)]
