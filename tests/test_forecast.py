"""Forecasters by their properties: what they are exact on, how fast they converge, what they amplify."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speca.forecast import FORECASTERS, MAX_ORDER, forecast_weights, hermite, newton, noise_gain, reuse, ridge, taylor

UNEVEN = [0.0, 1.0, 2.5, 3.0, 5.5]
EVEN = [0.0, 1.0, 2.0, 3.0, 4.0]


def apply(weights, times, f):
    return sum(w * f(t) for w, t in zip(weights, times, strict=True))


def polynomial(degree):
    coefficients = [1.5, -0.7, 0.3, 0.11, -0.05][: degree + 1]
    return lambda t: sum(c * t**i for i, c in enumerate(coefficients))


@pytest.mark.parametrize("order", range(MAX_ORDER + 1))
@pytest.mark.parametrize("direction", [1, -1])
def test_newton_is_exact_on_polynomials_of_its_order_on_any_spacing(order, direction):
    times = [direction * t for t in UNEVEN]
    target = direction * 6.25
    f = polynomial(order)
    assert apply(newton(times, target, order), times, f) == pytest.approx(f(target), rel=1e-12)


@pytest.mark.parametrize("order", range(4))
def test_newton_converges_with_its_order_plus_one(order):
    """Halving every gap divides the error by 2^(order + 1)."""

    def error(h):
        times = [-h * i for i in range(order, -1, -1)]
        return abs(apply(newton(times, h, order), times, math.exp) - math.exp(h))

    slope = math.log2(error(0.02) / error(0.01))
    assert slope == pytest.approx(order + 1, abs=0.1)


@pytest.mark.parametrize("name", sorted(FORECASTERS))
@given(
    gaps=st.lists(st.floats(0.05, 3.0), min_size=1, max_size=5),
    ahead=st.floats(0.05, 3.0),
    order=st.integers(0, MAX_ORDER),
)
def test_every_forecaster_reproduces_a_constant(name, gaps, ahead, order):
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    weights = FORECASTERS[name](times, times[-1] + ahead, order)
    assert len(weights) == len(times)
    assert sum(weights) == pytest.approx(1.0, abs=1e-6 * noise_gain(weights))


@pytest.mark.parametrize("forecaster", [newton, taylor])
def test_first_order_is_a_straight_line(forecaster):
    assert forecaster([0.0, 2.0], 3.0, 1) == pytest.approx([-0.5, 1.5])


def test_taylor_on_even_spacing_differs_from_newton_by_the_missing_half_step():
    """Second difference 1, one step ahead: Newton adds 1 * k(k+1)/2 = 1, the released rule k^2/2 = 0.5."""
    times, f = EVEN[:3], lambda t: t * (t - 1) / 2
    assert apply(newton(times, 3.0, 2), times, f) == pytest.approx(3.0)
    assert apply(taylor(times, 3.0, 2), times, f) == pytest.approx(2.5)


def test_taylor_is_no_interpolation_on_uneven_spacing():
    """Times 0, 2, 3 and f = t^2: d1 = 5, d2 = (5 - 2) / 1 = 3 by the last gap; 9 + 5 + 1.5 instead of 16."""
    assert apply(taylor([0.0, 2.0, 3.0], 4.0, 2), [0.0, 2.0, 3.0], lambda t: t * t) == pytest.approx(15.5)


def test_hermite_damps_the_straight_line_by_half():
    """sigma = 0.5: sigma H_1(sigma k) = 2 sigma^2 k = k / 2."""
    assert hermite([0.0, 1.0], 2.0, 1) == pytest.approx([-0.5, 1.5])
    assert noise_gain(hermite([0.0, 1.0], 3.0, 1)) < noise_gain(newton([0.0, 1.0], 3.0, 1))


def test_hermite_second_order_by_hand():
    """k = 1: F + d1/2 + d2/2 * sigma^2 (4 sigma^2 k^2 - 2) = F + d1/2 - d2/8 with sigma = 0.5."""
    times = EVEN[:3]
    assert hermite(times, 3.0, 2) == pytest.approx([-0.125, -0.25, 1.375])


@pytest.mark.parametrize("order", range(3))
def test_ridge_without_penalty_is_the_polynomial_through_all_anchors(order):
    times = UNEVEN[: order + 1]
    weights = ridge(times, 6.0, order, penalty=1e-12)
    assert weights == pytest.approx(newton(times, 6.0, order), abs=1e-4)


def test_ridge_amplifies_less_than_the_polynomial():
    assert noise_gain(ridge(EVEN, 6.0, 3)) < noise_gain(newton(EVEN, 6.0, 3))


def test_reuse_takes_the_newest_anchor():
    assert reuse(EVEN, 9.0, 4) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("limit", [1.0, 2.0, 3.0, 4.0, 10.0])
@given(gaps=st.lists(st.floats(0.01, 3.0), min_size=0, max_size=4), ahead=st.floats(0.01, 20.0))
def test_the_noise_gain_stays_within_its_limit(limit, gaps, ahead):
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    forecast = forecast_weights("newton", times, times[-1] + ahead, 4, limit)
    assert forecast.noise_gain <= limit * (1 + 1e-6)
    assert forecast.noise_gain == pytest.approx(noise_gain(forecast.weights))


def test_the_order_goes_up_as_far_as_the_limit_allows():
    """Anchors 0, 1, 2, one ahead: weights (0, 0, 1), (0, -1, 2), (1, -3, 3) have gains 1, 3, 7."""
    times = EVEN[:3]
    assert [noise_gain(newton(times, 3.0, m)) for m in range(3)] == [1, 3, 7]
    assert forecast_weights("newton", times, 3.0, 2, 7.0).order == 2
    half_a_parabola = forecast_weights("newton", times, 3.0, 2, 5.0)
    assert half_a_parabola.order == pytest.approx(1.5)
    assert half_a_parabola.weights == pytest.approx([0.5, -2.0, 2.5])
    half_a_line = forecast_weights("newton", times, 3.0, 2, 2.0)
    assert half_a_line.order == pytest.approx(0.5)
    assert half_a_line.weights == pytest.approx([0.0, -0.5, 1.5])
    assert forecast_weights("newton", times, 3.0, 2, 1.0).weights == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)


@given(limit=st.floats(1.5, 8.0), lead=st.floats(0.1, 6.0))
def test_nothing_jumps_where_a_lead_passes_the_limit(limit, lead):
    """A forecast a little further ahead is a little different one."""
    near, far = (forecast_weights("newton", EVEN, 4.0 + k, 3, limit).weights for k in (lead, lead + 1e-6))
    assert max(abs(a - b) for a, b in zip(near, far, strict=True)) < 1e-3


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="at least one anchor"):
        forecast_weights("newton", [], 1.0, 2, 3.0)
    with pytest.raises(ValueError, match="distinct times"):
        forecast_weights("newton", [0.5, 0.5], 1.0, 2, 3.0)
