"""How a run's time is spent: what a plan may cost, where it puts computed calls, and what is said of a miss."""

import math
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from speca.budget import GOAL, HIGHEST, LOWEST, Forecasts, Prices, affordable, haste, threshold_for, why_missed

WEIGHTS = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=40).map(tuple)
RATES = st.floats(1e-4, 1.0)


def sample(weights=(1.0,) * 9, total=0.0, in_a_row=0, rate=0.01, growth=1.0, longest=10):
    return Forecasts(total, in_a_row, rate, growth, tuple(weights), (1.0,) * len(weights), longest)


def test_errors_in_a_row_by_hand():
    """1, 1 + 2, 3 + 3, ... hundredths: the third passes .05, and is computed; then the count begins anew."""
    assert sample().computed(0.05) == [2, 5, 8]
    assert sample(growth=0.0).computed(0.05) == [5, 8]  # the last .03 counts twice
    assert sample(longest=1).computed(math.inf) == [1, 3, 5, 7]
    assert sample(in_a_row=1, total=0.01).computed(0.05) == [1, 4, 7]
    assert sample(weights=(1.0, math.inf, 1.0)).computed(1e9) == [1]


def test_an_output_is_no_more_wrong_than_all_of_it():
    assert sample([2.0, 2.0], rate=100.0).computed(1.9) == [0, 1]
    assert sample([2.0, 2.0], rate=100.0).computed(2.1) == [1]


def test_a_threshold_by_hand():
    """Three of nine calls: errors in a row add up to 1, 3, 6 hundredths, so from .03 on the third is computed, and from
    .06 on the fourth: the middle is between the two."""
    middle = pytest.approx(math.sqrt(0.03 * 0.06), rel=0.01)
    assert threshold_for([sample()], 3.0, together=False) == middle
    assert threshold_for([sample()], 3.9, together=False) == middle
    assert threshold_for([sample()], 9.0, together=False) == 0.0
    assert threshold_for([sample()], 0.9, together=False) == HIGHEST
    assert threshold_for([sample()] * 2, 0.5, together=False) < HIGHEST
    assert threshold_for([sample()] * 2, 0.5, together=True) == HIGHEST
    assert threshold_for([sample(longest=2)], 1.0, together=False) == HIGHEST


def test_what_nothing_puts_right_counts_twice():
    """.01, .03 and, twice, .06: the last call is computed up to .12, a call before it up to .06."""
    assert sample([1.0] * 3).computed(0.11) == [2]
    assert sample([1.0] * 4).computed(0.059) == [2]


def test_an_error_a_little_larger_than_foreseen_is_kept_for_a_larger_one_to_come():
    """Two of three calls: the first forecast costs least, so it is kept unless it turns out as dear as the next."""
    threshold = threshold_for([sample([0.034, 0.049, 0.095], rate=1.0)], 2.0, together=False)
    assert threshold > 1.5 * 0.034


@pytest.mark.parametrize("worse", [0.8, 1.0, 1.2, 1.5])
@pytest.mark.parametrize("allowed", [4.5, 6.3, 8.2])
def test_calls_are_left_for_the_dearest_though_those_before_turn_out_worse_than_foreseen(allowed, worse):
    """A run on nothing but its plans, of a call at a time: the last call costs most."""
    weights, left = (*[1.0] * 10, 2.0, 3.0, 4.0, 6.0, 10.0), allowed
    computed, total, in_a_row = [], 0.0, 0
    for call, weight in enumerate(weights):
        threshold = threshold_for([sample(weights[call:], total, in_a_row)], left, together=False)
        error = total + weight * 0.01 * (in_a_row + 1) * worse
        if error <= threshold:
            total, in_a_row = error, in_a_row + 1
        else:
            computed.append(call)
            total, in_a_row, left = 0.0, 0, left - 1
    assert computed[-1] == len(weights) - 1


def test_computed_calls_stand_denser_where_errors_cost_more():
    early, late = sample([4.0] * 10 + [1.0] * 10), sample([1.0] * 10 + [4.0] * 10)
    for one, half in ((early, range(10)), (late, range(10, 20))):
        computed = one.computed(threshold_for([one], 8.0, together=False))
        assert sum(call in half for call in computed) > len(computed) / 2


def test_the_harder_sample_gets_more():
    easy, hard = sample([1.0] * 20, rate=0.01), sample([1.0] * 20, rate=0.03)
    threshold = threshold_for([easy, hard], 6.0, together=False)
    assert len(easy.computed(threshold)) < len(hard.computed(threshold))
    both = threshold_for([easy, hard], 6.0, together=True)
    assert len({*easy.computed(both), *hard.computed(both)}) <= 6


@given(WEIGHTS, RATES, st.floats(0.0, 40.0), st.floats(0.0, 0.5), st.integers(1, 12))
def test_a_plan_costs_what_is_allowed(weights, rate, computed, total, longest):
    one = sample(weights, total=total, rate=rate, growth=1.2, longest=longest)
    threshold = threshold_for([one], computed, together=False)
    if threshold < HIGHEST:
        assert len(one.computed(threshold)) <= computed
    if LOWEST < threshold < HIGHEST:  # and no fewer than another threshold would have computed within it
        others = (len(one.computed(threshold * by)) for by in (0.25, 0.5, 0.9))
        assert all(n > computed or n <= len(one.computed(threshold)) for n in others)


@given(
    st.lists(st.floats(0.2, 5.0), min_size=15, max_size=40), st.floats(1e-3, 5e-3), st.integers(4, 8), st.floats(0.3, 3)
)
def test_only_the_shape_of_errors_matters(weights, rate, computed, by):
    """A model whose errors are `by` times as large, none of them a whole output, is computed at the same calls."""
    one, other = sample(weights, rate=rate), sample(weights, rate=rate * by)
    expected, threshold = (threshold_for([each], computed, together=False) for each in (one, other))
    for each, at in ((one, expected), (other, threshold)):  # no range of thresholds that is cut off at either end
        assume(len(each.computed(HIGHEST)) < len(each.computed(at)))
        assume(len(each.computed(LOWEST)) > computed)
    assert threshold == pytest.approx(min(by * expected, HIGHEST), rel=0.01, abs=1.1 * LOWEST * max(by, 1))


@given(st.floats(0.1, 100), st.floats(0.001, 100), st.floats(0, 10), st.floats(0, 1000), st.integers(1, 60))
def test_what_is_affordable_takes_no_longer(full, check, outside, seconds, calls):
    n = affordable(Prices(full, check, outside), seconds, calls)
    assert 0 <= n <= calls
    if 0 < n < calls:
        assert n * full + (calls - n) * check + calls * outside == pytest.approx(seconds)


def test_an_output_changes_faster_the_more_it_tells_of_the_picture():
    assert haste(0.0) == 1  # nothing is known
    assert haste(10.0) > haste(1.0) > haste(0.1) > 1


@pytest.mark.parametrize(
    ("got", "check", "calls", "forced", "rejected", "lost", "why"),
    [
        (3.0, 0.02, 28, 1, 0, 0.0, None),
        (3.0 * (1 - 0.9 * GOAL), 0.02, 28, 1, 0, 0.0, None),
        (3.0 * (1 + 0.9 * GOAL), 0.02, 28, 1, 0, 0.0, None),
        (3.2, 0.02, 28, 1, 0, 0.0, "3.2x reached: one computed call more would have taken 11% of the time"),
        (3.2, 0.02, 200, 1, 0, 0.0, "calls took less time than such calls usually do"),
        (2.0, 0.4, 28, 1, 0, 0.0, "one call computed and 27 forecast it would be 2.37x, .* 40% of a computed call"),
        (2.5, 0.02, 28, 12, 0, 0.0, "12 of 28 calls had to be computed"),
        (2.5, 0.02, 28, 1, 9, 0.0, "9 forecasts were too wrong"),
        (2.5, 0.02, 28, 1, 1, 0.0, "1 forecast was too wrong"),
        (2.5, 0.02, 28, 1, 0, 2.0, "calls took longer than such calls usually do"),
        (2.5, 0.02, 28, 1, 9, 2.0, "calls took longer than such calls usually do"),
        (None, 0.02, 28, 28, 0, 0.0, "nothing reached: 28 of 28 calls had to be computed"),
    ],
)
def test_what_is_said_of_a_miss(got, check, calls, forced, rejected, lost, why):
    said = why_missed(3.0, got, Prices(1.0, check), calls, forced, rejected, lost)
    assert (said is None) == (why is None)
    if why is not None:
        assert said.startswith("3x was asked for, ")
        assert re.search(why, said)
