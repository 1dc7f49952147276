"""How to spend a run's time: at which threshold do the calls left end at the speed that was asked for? Pure.

A run in speed mode has the seconds that it would take uncached, divided by the speed asked for. What is left of them,
at the prices measured so far, pays for so many computed calls (`affordable`). Where those go is one number, a
threshold: a call is computed where the errors since the last computed one would pass it (`Forecasts`), each weighted by
what it costs the final picture at its noise level. Of all plans with as many computed calls, the lowest thresholds have
the gaps of equal error (`threshold_for`).

Nothing of a plan is kept: each call makes its own, from the seconds left and the errors seen, and one more once it is
checked. So what a rejection or a slow call costs more is saved later, and what turned out cheaper is spent.

The error of the n-th forecast in a row is n times that of the first, and larger where the output tells more of the
picture (`haste`). How large that is, each sample's own checks tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_RATE = 0.015
"""Of a first forecast's error, before any was seen. Half and twice as much lose .5 and .3 dB at equal speed, on five of
the zoo's models at 2x, 3x and 4x of 28 steps: less than single runs scatter by."""

NEW_SHARE = 0.3
"""Of each check's error in the geometric mean of them all, the first of which counts in full. On the same, .5 loses .5
dB, .1 and the plain mean 1 to 3: a plan that follows every check wanders, and has nothing left for the last calls.
`FIRST_RATE` and this were tried with plans at the lowest of their thresholds (`threshold_for`)."""

LAST_GAP = 2.0
"""What the errors of a run's last forecasts count for: no computed call puts them right. Such a gap costs the final
picture 1 to 3.2 times what it was judged, others 0.3 to 1.2 times (benchmarks/README.md, "Where goals are missed")."""

GOAL = 0.03
"""A run that ends so near to the speed asked for has kept it."""

TOLERANCE = 0.025
"""Of the time: a computed call more is worth being late by so much. What is left of `GOAL` is for checks that were not
foreseen and prices that are not known well."""

MADE_UP = 0.05
"""Of the time: what is lost to calls that take longer than such calls do is saved later as far as that. Of a run on a
busy machine all computed calls left were to be saved; it ends late, and its picture is what it would have been."""

HIGHEST = 10.0
"""However short the time, no forecasts are kept whose errors add up to more than so many times the output."""

MOST_PLANNED = 8
"""Samples of a batch that are planned for, evenly chosen, so that a plan takes no time worth counting."""

LOWEST, HALVINGS = 1e-6, 14


def haste(picture_gain: float) -> float:
    """How much faster the network's output changes than one that tells nothing of the picture.

    An output is (picture - latent_gain * x) / output_gain, so the picture's own changes are in it by `picture_gain`,
    1 / output_gain: as 1 / sigma in flow matching and where noise is predicted, by less near sigma 0 for v and EDM.
    They count as much as what an output has besides. By half as much or half as little again, plans lose .5 and .7 dB
    at equal speed on eighteen trained models; without them 8 dB on three, as the last calls come too cheap.
    """
    return 1 + picture_gain


@dataclass(frozen=True)
class Prices:
    """Seconds of one call: computed in full; forecast and checked; and what the sampler does between two calls."""

    full: float
    check: float
    outside: float = 0.0

    def uncached(self, calls: int) -> float:
        """Seconds of a run of so many calls, all computed."""
        return calls * (self.full + self.outside)


@dataclass(frozen=True)
class Forecasts:
    """One sample before a call.

    total: the errors carried since its last computed call. in_a_row: forecasts since then. rate: the error of a first
    forecast. growth: of the carried total from call to call; 0 where each error is
    compared alone. weights, hastes: what an error costs the final picture and how fast it grows (`haste`), of each call
    that is left, the one at hand first; a weight is infinite where no forecast is allowed. longest: the most forecasts
    in a row.
    """

    total: float
    in_a_row: int
    rate: float
    growth: float
    weights: tuple[float, ...]
    hastes: tuple[float, ...]
    longest: int

    def computed(self, threshold: float) -> list[int]:
        """The calls, 0 for the one at hand, that would be computed at `threshold`."""
        total, in_a_row, calls = self.total, self.in_a_row, []
        for i, (weight, faster) in enumerate(zip(self.weights, self.hastes, strict=True)):
            in_a_row += 1
            total = self.growth * total + weight * min(self.rate * faster * in_a_row, 1.0)  # all of the output, at most
            counted = total * LAST_GAP if i == len(self.weights) - 1 else total
            if counted > threshold or in_a_row > self.longest:
                calls.append(i)
                total, in_a_row = 0.0, 0
        return calls


def affordable(prices: Prices, seconds: float, calls: int) -> float:
    """How many of the `calls` left may be computed, from 0 to all, so that they take `seconds`."""
    dearer = prices.full - prices.check
    if dearer <= 0:
        return float(calls)  # a forecast saves nothing
    return min(max((seconds - calls * (prices.check + prices.outside)) / dearer, 0.0), float(calls))


def threshold_for(samples: Sequence[Forecasts], computed: float, together: bool) -> float:
    """The threshold at which as many calls of each sample as `computed` allows, on the average, are computed.

    A range of thresholds has the same plan, and this is its (geometric) middle: errors are never those foreseen, and at
    the lowest each call that is to be kept lies on the verge of being computed, at the expense of a later one. Against
    the best fixed threshold of the same speed that lost 6.7 dB on six of the zoo's models, the middle 1.4; with
    `LAST_GAP`, the first check counted in full and the plan made anew after each, 0.1
    (all models: benchmarks/results/paced.md).

    together: samples that cannot be taken apart are computed as soon as one of them is. `HIGHEST` where nothing more
    can be computed, or where no threshold up to that is high enough.
    """
    some = samples[:: math.ceil(len(samples) / MOST_PLANNED)]

    def cost(threshold: float) -> float:
        plans = [sample.computed(threshold) for sample in some]
        return float(len(set().union(*plans))) if together else sum(map(len, plans)) / len(plans)

    if cost(0.0) <= computed:
        return 0.0
    if computed * (1 if together else len(samples)) < 1 or cost(HIGHEST) > computed:
        return HIGHEST

    def lowest(allowed: float) -> float:
        low, high = math.log(LOWEST), math.log(HIGHEST)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if cost(math.exp(middle)) <= allowed else (middle, high)
        return math.exp(high)

    least = lowest(computed)
    fewer = cost(least) - 0.5 / len(some)  # a call of one sample less
    middle = math.sqrt(least * (lowest(fewer) if cost(HIGHEST) <= fewer else HIGHEST))
    return middle if cost(middle) <= computed else least


def why_missed(
    target: float, got: float | None, prices: Prices, calls: int, forced: int, rejected: int, lost: float
) -> str | None:
    """In one sentence how far off the speed asked for a run has ended, and why; None if within 3 %.

    got: the speed reached. calls: of the run. forced: those computed because no forecast was allowed or possible.
    rejected: those computed after a forecast. lost: seconds that calls took beyond their usual prices.
    """
    if got is not None and abs(got / target - 1) <= GOAL:
        return None
    uncached = prices.uncached(calls)
    allowed = uncached / target
    fastest = uncached / max(prices.full + (calls - 1) * prices.check + calls * prices.outside, 1e-12)
    share = prices.full / max(allowed, 1e-12)
    asked = f"{target:.3g}x was asked for, {'nothing' if got is None else f'{got:.3g}x'} reached: "
    if got is not None and got > target:
        if share > GOAL:
            return f"{asked}one computed call more would have taken {share:.0%} of the time"
        return f"{asked}calls took less time than such calls usually do"
    if fastest < target * (1 - GOAL):
        return (
            f"{asked}with one call computed and {calls - 1} forecast it would be {fastest:.3g}x, as a forecast and its "
            f"check take {prices.check / prices.full:.0%} of a computed call's time here"
        )
    least = max(forced, 1)
    if least * prices.full + (calls - least) * prices.check + calls * prices.outside > allowed:
        return f"{asked}{forced} of {calls} calls had to be computed"
    late = math.inf if got is None else uncached / got - allowed
    if rejected and lost < late / 2:
        return f"{asked}{rejected} forecast{'s were' if rejected > 1 else ' was'} too wrong to keep"
    return f"{asked}calls took longer than such calls usually do, as on a busy machine"
