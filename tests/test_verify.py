"""Error metrics by hand and by their invariances; the threshold; the verdict."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fake_network import HEADER, REUSE, Renoised, errors, latent_of
from speca.call import Call
from speca.session import Session
from speca.verify import (
    CARRIED_GROWTH,
    ERROR_METRICS,
    ErrorSum,
    cosine,
    elementwise_l1,
    judge,
    likely_error,
    relative_l1,
    relative_l2,
    row_errors,
    threshold_at,
)

EXACT = torch.tensor([[[3.0, 4.0]], [[1.0, -1.0]]])
FORECAST = torch.tensor([[[3.0, 9.0]], [[1.0, -1.0]]])


def test_metrics_by_hand():
    assert relative_l2(FORECAST, EXACT).tolist() == pytest.approx([1.0, 0.0])
    assert relative_l1(FORECAST, EXACT).tolist() == pytest.approx([5 / 7, 0.0])
    assert elementwise_l1(FORECAST, EXACT).tolist() == pytest.approx([0.5 * 5 / 4, 0.0])
    right_angle = torch.tensor([[[-4.0, 3.0]], [[1.0, -1.0]]])
    assert cosine(right_angle, EXACT).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("name", sorted(ERROR_METRICS))
def test_metrics_judge_each_sample_alone_and_ignore_scale(name):
    torch.manual_seed(0)
    exact, forecast = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    metric = ERROR_METRICS[name]
    together = metric(forecast, exact)
    assert together.shape == (4,)
    alone = torch.cat([metric(forecast[i : i + 1], exact[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(metric(forecast * 1000, exact * 1000), together, rtol=1e-4, atol=1e-6)
    assert metric(exact, exact).abs().max() < 1e-6


@pytest.mark.parametrize("name", sorted(ERROR_METRICS))
def test_metrics_compute_in_fp32_whatever_comes_in(name):
    """In half precision the squares of 300 overflow; 1e-8 beside a norm would be lost."""
    exact = torch.full((1, 64), 300.0, dtype=torch.float16)
    error = ERROR_METRICS[name](exact, exact)
    assert error.dtype == torch.float32
    assert error.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(ERROR_METRICS) - {"cosine"}))
def test_an_all_zero_output_gives_a_finite_error(name):
    zero = torch.zeros(1, 8)
    assert ERROR_METRICS[name](zero, zero).item() == 0.0
    assert math.isfinite(ERROR_METRICS[name](torch.ones(1, 8), zero).item())


def test_unequal_shapes_are_an_error():
    with pytest.raises(ValueError, match="shape"):
        relative_l2(torch.zeros(1, 4), torch.zeros(1, 5))


@given(progress=st.floats(0, 1), threshold=st.floats(1e-3, 1), factor=st.floats(0.1, 10))
def test_threshold_runs_from_its_value_to_its_factor_geometrically(progress, threshold, factor):
    assert threshold_at(0.0, threshold, factor) == threshold
    assert threshold_at(1.0, threshold, factor) == pytest.approx(threshold * factor)
    middle = threshold_at(progress, threshold, factor) * threshold_at(1 - progress, threshold, factor)
    assert middle == pytest.approx(threshold**2 * factor)


def test_verdicts():
    assert judge(0.1, 0.1).accepted
    assert not judge(0.1001, 0.1).accepted
    assert judge(0.04, 0.1, accumulated=0.06 - 1e-9).accepted
    summed = judge(0.05, 0.1, accumulated=0.06)
    assert not summed.accepted
    assert summed.error == pytest.approx(0.11)


@given(difference=st.floats(0, 10, width=32), reach=st.floats(0, 10, width=32))
def test_the_likely_error_lies_between_difference_and_reach_and_never_below_the_difference(difference, reach):
    (likely,) = likely_error(torch.tensor([difference]), torch.tensor([reach])).tolist()
    assert likely >= difference * (1 - 1e-5) - 1e-18
    assert likely <= max(difference, reach) * (1 + 1e-5)
    if reach > difference:
        assert likely**2 == pytest.approx(difference * reach, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_likely_error_of_what_is_not_finite_rejects(bad):
    for pair in ((bad, 0.1), (0.1, bad), (0.0, bad)):
        (likely,) = likely_error(*(torch.tensor([value]) for value in pair)).tolist()
        assert not judge(likely, 1e9).accepted


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_not_a_number_rejects_whatever_the_threshold(error):
    verdict = judge(error, 1e9)
    assert not verdict.accepted
    assert verdict.error == math.inf


def test_with_fresh_noise_a_sum_of_errors_does_not_grow():
    """Repeating a rest of 1 where it is 2 and then 3: the outputs are wrong by 2/4 and by 4/6."""
    config = replace(REUSE, threshold=10.0, accumulate_error=True)
    session = Session(config, HEADER)
    for i, (time, rest) in enumerate([(5.0, 1.0), (4.0, 1.0), (3.0, 2.0), (2.0, 3.0)]):
        latent = latent_of(torch.zeros(1, 4), 0.5, 2.0)
        session.evaluate(
            Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True), Renoised(time, 0.0, rest=rest)
        )
    assert errors(session)[2:] == pytest.approx([2 / 4, 2 / 4 + 4 / 6])


def test_the_errors_of_each_tensor_of_each_row():
    """The first tensor's second row: verified 4, direct 3, other 1, so 1/4 and 2/3; all else agrees."""
    verified, direct, other = torch.tensor([[2.0], [4.0]]), torch.tensor([[2.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    same = torch.ones(2, 5)
    outputs = (verified, same), (direct, same), (other, same)
    errors = row_errors("relative_l2", *outputs, guessed=(False, False))
    assert errors.tolist() == [pytest.approx([0.0, math.sqrt(1 / 4 * 2 / 3)]), [0.0, 0.0]]
    with_one_anchor = row_errors("relative_l2", *outputs, guessed=(False, True))
    assert with_one_anchor.tolist() == [pytest.approx([0.0, 1 / 4 + 2 / 3]), [0.0, 0.0]]


def test_a_sum_of_errors_by_hand():
    """.1 at weight 2 is a rate of .05; carried on it has grown, and .05 more at weight 3 is expected."""
    first = ErrorSum().after(0.1, weight=2.0, renoised=False, accumulate=True)
    assert (first.total, first.added) == pytest.approx((0.1, 0.05))
    assert first.carried(renoised=False) == pytest.approx(CARRIED_GROWTH * 0.1)
    assert first.carried(renoised=True) == 0.1
    assert first.expected(3.0, renoised=False) == pytest.approx(CARRIED_GROWTH * 0.1 + 0.15)
    second = first.after(0.5, weight=1.0, renoised=True, accumulate=True)
    assert (second.total, second.added) == pytest.approx((0.5, 0.4))
    assert second.after(0.7, weight=0.0, renoised=True, accumulate=True).added == second.added
    assert first.after(0.5, weight=1.0, renoised=True, accumulate=False).total == 0.0
