"""What an error costs, checked against linear flows whose answer can be written down."""

import math
from dataclasses import replace

import pytest
import torch

from speca.schedule import (
    COSTS_ONE,
    DECIDED_AT,
    ENDS,
    STAYS_ASTRAY,
    NoiseLevel,
    Schedule,
    error_weights,
    renoised_std,
)


def eps(sigma):
    """Noise prediction: x = data + sigma * n, denoised = x - sigma * output."""
    return NoiseLevel(sigma, 1.0, sigma, 1.0, -sigma)


def flow(sigma):
    """Flow matching: x = (1 - sigma) * data + sigma * n, denoised = x - sigma * output."""
    return NoiseLevel(sigma, 1.0 - sigma, sigma, 1.0, -sigma)


def velocity(sigma):
    """V-prediction (comfy/model_sampling.py, V_PREDICTION, sigma_data 1)."""
    return NoiseLevel(sigma, 1.0, sigma, 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1))


@pytest.mark.parametrize("kind", [eps, flow, velocity])
def test_late_in_a_run_an_error_costs_its_step(kind):
    """At little noise nothing is undone any more: the latent moves by the step times the error."""
    assert kind(1e-3).final_error(1e-4, 3.0) == pytest.approx(1e-4, rel=2e-3)


def test_an_early_error_is_partly_undone():
    """Far above `decided_at` an error of the noise is worth its share of the noise, not its length."""
    assert eps(300.0).final_error(3.0, 5.0) == pytest.approx(5 * 3 / 300, rel=1e-3)
    assert eps(300.0).final_error(3.0, 5.0) < eps(3.0).final_error(3.0, 5.0)


def test_where_noise_decides_early_errors_cost_more():
    """The more noise it takes to forget an error, the more an early one costs beside a late one."""
    sigmas = [100.0, 30.0, 10.0, 3.0, 1.0, 0.3]
    schedule = Schedule(tuple(eps(s) for s in sigmas), 0.0)
    early = [schedule.weight(0, decided_at) / schedule.weight(5, decided_at) for decided_at in (1.0, 3.0, 10.0, 30.0)]
    assert early == sorted(early)
    assert schedule.weight(0) == schedule.weight(0, DECIDED_AT)
    assert Schedule().weight(3, 2.0) == 1.0


def test_what_becomes_known_of_the_steps_makes_weights_anew():
    plain = Schedule(tuple(eps(s) for s in (100.0, 30.0, 10.0, 0.1)))
    weights = [plain.weight(step) for step in range(4)]
    assert [replace(plain, euler=False).weight(step) for step in range(4)] != weights
    assert [plain.weight(step) for step in range(4)] == weights


def test_flow_and_noise_prediction_agree_on_one_step():
    """The same step in both languages, y = x / (1 - s) and sigma = s / (1 - s): an error of the denoised picture costs
    the same, whatever the network calls its output."""
    s, to = 0.5, 0.4
    as_flow = flow(s).final_error(s - to, 3.0) / abs(flow(s).output_gain)
    ratio = s / (1 - s)
    # x moves by (s - to) / s of the denoised error; y = x / (1 - to) afterwards, (1 - s) / (1 - to) of it left of s
    as_noise = eps(ratio).final_error(ratio - to / (1 - to), 3.0) / ratio
    assert as_flow * (1 - s) / (1 - to) == pytest.approx(as_noise)


def test_an_error_weighs_what_it_moves_the_picture_by_on_every_schedule():
    """And at the end, where nothing puts it right, more; all together as much as if it did not."""
    sigmas = [10.0, 5.0, 2.0, 1.0, 0.5]
    weights = error_weights([eps(s) for s in sigmas], 0.0, DECIDED_AT)
    costs = [eps(s).final_error(s - t, DECIDED_AT) for s, t in zip(sigmas, [*sigmas[1:], 0.0], strict=True)]
    dearer = [cost * (STAYS_ASTRAY if step >= len(costs) - ENDS else 1.0) for step, cost in enumerate(costs)]
    assert [w * COSTS_ONE for w in weights] == pytest.approx([d * sum(costs) / sum(dearer) for d in dearer])
    finer = error_weights([eps(s) for s in (10.0, 7.5, 5.0, 3.5, 2.0, 1.5, 1.0, 0.75, 0.5, 0.25)], 0.0, DECIDED_AT)
    assert sum(finer) == pytest.approx(sum(weights), rel=0.2)  # as many errors of half the cost


def test_what_a_run_learns_moves_weights_among_its_steps_alone():
    levels = [eps(s) for s in (10.0, 5.0, 2.0, 1.0, 0.5)]
    early, usual = (error_weights(levels, 0.0, decided_at) for decided_at in (40.0, DECIDED_AT))
    assert sum(early) == pytest.approx(sum(usual))
    assert early[0] > usual[0]


def test_an_average_step_of_a_flow_model_weighs_about_one():
    shifted = [3 * t / (1 + 2 * t) for t in (1 - i / 28 for i in range(28))]
    weights = error_weights([flow(s) for s in shifted], 0.0, 5.0)
    assert sum(weights) / len(weights) == pytest.approx(1.0, rel=0.3)


def test_a_repeated_sigma_costs_nothing_and_a_rising_one_what_a_falling_one_does():
    weights = error_weights([eps(s) for s in (4.0, 4.0, 2.0, 3.0, 1.0)], 0.0, 3.0)
    assert weights[0] == 0.0
    assert weights[2] == pytest.approx(weights[1] * eps(2.0).final_error(1.0, 3.0) / eps(4.0).final_error(2.0, 3.0))
    assert min(weights) >= 0.0


def test_the_last_step_is_known_where_the_steps_are():
    schedule = Schedule((flow(1.0), flow(0.5)), 0.0)
    assert [schedule.ends_at(step) for step in (0, 1, 2)] == [False, True, True]
    assert not Schedule().ends_at(5)


def test_where_steps_are_of_a_higher_order_a_call_weighs_in_the_steps_beside_it():
    """Schedule "normal" ends with 0.15, 0.001, 0. Heun's call at 0.001 moves the latent by half of the step to there,
    and dpmpp_2m takes that step by 4 times the difference of the two calls before it."""
    levels = tuple(flow(sigma) for sigma in (0.39, 0.27, 0.15, 0.001))
    plain, higher = (Schedule(levels, 0.0, euler=euler) for euler in (True, False))
    factors = [higher.weight(step) / plain.weight(step) for step in range(4)]
    farther = math.log(0.15 / 0.001) / math.log(0.27 / 0.15) / 2
    assert factors == pytest.approx([1.0, farther * 0.149 * 0.27 / 0.15 / 0.12, farther, 0.149 / 0.001 / 2], rel=0.01)


def test_on_a_smooth_schedule_the_order_of_steps_makes_no_difference():
    levels = tuple(flow(sigma) for sigma in (1.0, 0.9, 0.79, 0.67, 0.54, 0.4, 0.24))
    plain, higher = (Schedule(levels, 0.0, euler=euler) for euler in (True, False))
    assert [higher.weight(step) for step in range(7)] == [plain.weight(step) for step in range(7)]


def test_a_picture_s_change_in_the_output():
    """Of flow matching and of noise by 1 / sigma, as their outputs are (x - picture) / sigma."""
    schedule = Schedule((flow(0.8), flow(0.5)), 0.0)
    assert [schedule.picture_gain(step) for step in range(3)] == [1.25, 2.0, 0.0]
    assert Schedule((eps(4.0),), 0.0).picture_gain(0) == 0.25


def test_what_cannot_be_weighed_weighs_one():
    assert error_weights([], 0.0, 3.0) == ()
    assert error_weights([eps(2.0), eps(2.0)], 2.0, 3.0) == (1.0, 1.0)
    assert error_weights([replace(eps(2.0), output_gain=math.inf)], 0.0, 3.0) == (1.0,)


def test_fresh_noise_is_that_of_an_ancestral_step():
    """comfy/k_diffusion/sampling.py, get_ancestral_step: sigma_up^2 = to^2 (from^2 - to^2) / from^2."""
    assert renoised_std(eps(5.0), eps(3.0)) == pytest.approx(math.sqrt(9 * (25 - 9) / 25))
    assert renoised_std(flow(1.0), flow(0.9)) == pytest.approx(0.9)  # pure noise before: all of it may be new
    assert renoised_std(eps(5.0), eps(5.0)) == 0.0


@pytest.mark.parametrize("kind", [eps, flow])
def test_an_output_shows_the_picture_that_it_is_made_for(kind):
    x, picture = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 4)
    torch.testing.assert_close(kind(0.6).denoised(x, kind(0.6).output(x, picture)), picture)
