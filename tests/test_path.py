"""A run's noise levels as ComfyUI's own model sampling has them, where a call stands, and what is a jump."""

import pytest
import torch

from speca.path import SamplingPath, Seen


class NoisePrediction:
    def noise_scaling(self, sigma, noise, latent):
        return sigma * noise + latent

    def calculate_denoised(self, sigma, output, x):
        return x - sigma * output


class Broken(NoisePrediction):
    def calculate_denoised(self, sigma, output, x):
        return torch.full_like(x, float("nan"))


def test_levels_are_read_off_the_model():
    level = SamplingPath(NoisePrediction(), [2.0, 1.0, 0.0]).level(2.0)
    assert (level.signal, level.noise, level.latent_gain, level.output_gain) == (1.0, 2.0, 1.0, -2.0)


@pytest.mark.parametrize("model_sampling", [object(), Broken()])
def test_a_model_that_cannot_be_read_has_equal_weights(model_sampling):
    path = SamplingPath(model_sampling, [2.0, 1.0, 0.0])
    assert path.level(2.0) is None
    assert [path.schedule.weight(step) for step in range(3)] == [1.0, 1.0, 1.0]


def test_a_schedule_with_a_call_at_zero_has_equal_weights():
    path = SamplingPath(NoisePrediction(), [2.0, 0.0, 0.0])
    assert path.level(0.0) is None
    assert [path.schedule.weight(step) for step in range(2)] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("sigma", "step", "progress"),
    [
        (4.0, 0, 0.0),
        (3.0, 0, 0.5 / 4),  # between two sigmas, as samplers of higher order ask
        (2.0, 2, 2 / 4),  # a repeated sigma counts from its last place
        (0.5, 3, 3.5 / 4),
        (0.0, 3, 1.0),
        (9.0, 0, 0.0),
    ],
)
def test_where_a_call_stands_in_the_run(sigma, step, progress):
    path = SamplingPath(NoisePrediction(), [4.0, 2.0, 2.0, 1.0, 0.0])
    assert path.position(sigma) == (step, pytest.approx(progress))


def positions(levels, asked):
    """Steps at which a sampler that asks at these sigmas stands."""
    path = SamplingPath(NoisePrediction(), levels)
    steps = []
    for sigma in asked:
        path.arrive(torch.zeros(1, 4, 8, 8), sigma)
        steps.append(path.position(sigma)[0])
    return steps


UP = [0.0, 1.0, 2.0, 4.0, 6.0]
DOWN_UP_DOWN = [4.0, 2.0, 1.0, 2.0, 3.0, 1.5, 0.0]


@pytest.mark.parametrize(
    ("levels", "asked", "steps"),
    [
        (UP, UP[:-1], [0, 1, 2, 3]),
        (UP, [0.0, 0.5, 1.0, 1.5], [0, 0, 1, 1]),  # midpoints
        (DOWN_UP_DOWN, DOWN_UP_DOWN[:-1], [0, 1, 2, 3, 4, 5]),
        (DOWN_UP_DOWN, [4.0, 2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 3.0], [0, 1, 1, 2, 2, 3, 3, 4]),  # heun asks each twice
        ([4.0, 2.0, 1.0, 0.0], [4.0, 2.0, 1.0, 2.0, 1.0], [0, 1, 2, 1, 2]),  # the sampler itself goes back
        (DOWN_UP_DOWN, [4.0, 2.0, 1.0, 2.0, 3.6, 3.0, 1.5], [0, 1, 2, 3, 4, 4, 5]),  # a second call beyond all ahead
    ],
)
def test_steps_of_schedules_in_any_direction(levels, asked, steps):
    assert positions(levels, asked) == steps


def test_progress_of_a_rising_schedule():
    path = SamplingPath(NoisePrediction(), UP)
    assert [path.position(sigma)[1] for sigma in (0.0, 0.5, 2.0, 5.0, 6.0)] == pytest.approx(
        [0.0, 0.5 / 4, 2 / 4, 3.5 / 4, 1.0]
    )


def test_a_step_up_costs_what_a_step_down_costs():
    """It moves the latent as far. Counted as a negative length, it cost nothing, and a way up and down nothing at all,
    which made every other error infinitely dear."""
    down, up = [4.0, 2.0, 1.0, 0.5], [0.5, 1.0, 2.0, 4.0]
    schedule = SamplingPath(NoisePrediction(), [*down, *up[1:]]).schedule
    weights = [schedule.weight(step) for step in range(6)]
    there = SamplingPath(NoisePrediction(), [*down, 0.25, 0.125]).schedule
    ratios = [there.weight(step) / there.weight(0) for step in range(3)]
    assert [weight / weights[0] for weight in weights[:3]] == pytest.approx(ratios)
    assert min(weights) > 0.1 * max(weights)


def test_a_schedule_without_a_step_has_no_position():
    assert SamplingPath(NoisePrediction(), [1.0]).position(1.0) == (0, 0.0)


def noise(seed, std=1.0):
    return std * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def arrived(*evaluations):
    """Whether each evaluation, (sigma, x), comes as a jump; the picture is 0 all the time."""
    path = SamplingPath(NoisePrediction(), [4.0, 2.0, 1.0, 0.5, 0.0])
    jumps = []
    for sigma, x in evaluations:
        jumps.append(path.arrive(x, sigma))
        path.leave(x, sigma, torch.zeros_like(x))
    return jumps, path


def test_steps_of_a_sampler_are_no_jumps():
    one = noise(1)
    jumps, path = arrived((4.0, 4 * one), (2.0, 2 * one), (2.0, 2.1 * one), (1.0, one), (2.0, 2 * one))
    assert not any(jumps)
    assert not path.renoised


@pytest.mark.parametrize("sigma", [2.0, 4.0], ids=["at one sigma", "on the way up"])
def test_fresh_noise_where_none_falls_due_is_a_jump(sigma):
    jumps, path = arrived((4.0, noise(1, 4.0)), (2.0, noise(1, 2.0)), (sigma, noise(2, sigma)))
    assert jumps == [False, False, True]
    assert not path.renoised
    assert not path.keeps_jumping


def test_steps_that_are_not_euler_s_to_the_letter_are_known():
    """A little of the line through two calls, as dpmpp_2m adds it; and a second call where the step ended."""
    one = noise(1)
    assert arrived((4.0, 4 * one), (2.0, 2 * one), (1.0, one))[1].schedule.euler
    assert not arrived((4.0, 4 * one), (2.0, 2 * one), (1.0, 1.02 * one))[1].schedule.euler
    assert not arrived((4.0, 4 * one), (2.0, 2 * one), (2.0, 2 * one))[1].schedule.euler


def test_a_picture_that_is_moved_is_a_jump():
    one = noise(1)
    assert arrived((4.0, 4 * one), (3.9, 3.9 * one.roll(5, -1)))[0] == [False, True]


@pytest.mark.parametrize("after", [3.6, 2.4, 1.2])
def test_a_region_whose_mask_is_taken_away_is_a_jump(after):
    """Cosmos 1 is shown masked regions without noise, as long as noise would be: a step's length is no measure."""
    smooth = torch.ones(1, 4, 8, 16)
    one = noise(1)
    masked, free = torch.cat((one[:, :, :8], smooth), 2), one
    assert arrived((4.0, 4 * masked), (after, after * free))[0] == [False, True]
    assert arrived((4.0, 4 * masked), (after, after * masked))[0] == [False, False]


def test_the_correction_at_one_sigma_is_none():
    """Heun's second call: the slope has changed by a half."""
    path = SamplingPath(NoisePrediction(), [4.0, 2.0, 1.0, 0.0])
    x, smooth = noise(1, 4.0), torch.ones(1, 4, 16, 16)
    path.leave(x, 4.0, torch.zeros_like(x))
    assert not path.arrive(x / 2, 2.0)
    path.leave(x / 2, 2.0, torch.zeros_like(x))
    assert not path.arrive(x / 2 + 0.7 * smooth, 2.0)


def test_noise_that_falls_due_is_no_jump():
    """Half of the variance at 2 is kept from 4, the rest is new."""
    jumps, path = arrived((4.0, noise(1, 4.0)), (2.0, noise(1, 1.0) + noise(2, 3.0**0.5)))
    assert jumps == [False, False]
    assert path.renoised


@pytest.mark.parametrize("between", [2.0, 2.2], ids=["where it ends", "on the way"])
def test_noise_that_falls_due_is_none_after_a_call_on_the_way(between):
    """dpm_2_ancestral and dpmpp_2s_ancestral call the network there, and only then add the noise of the whole step."""
    jumps, path = arrived((4.0, noise(1, 4.0)), (between, noise(1, between)), (2.0, noise(1, 1.0) + noise(2, 3.0**0.5)))
    assert jumps == [False, False, False]
    assert path.renoised


def test_a_guidance_rule_that_correlates_in_columns_alone_adds_no_noise():
    """Stripes: neighbours in a row tell nothing of one another (euler_cfg_pp on a HunyuanVideo of the zoo)."""
    one = noise(1)
    stripes = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(4).expand_as(one)
    assert not arrived((4.0, 4 * one), (2.0, 2 * one + stripes))[1].renoised


def test_a_sampler_that_jumps_again_and_again_is_known_for_it():
    assert arrived(*((2.0, noise(seed, 2.0)) for seed in range(6)))[1].keeps_jumping


@pytest.mark.parametrize("denoised", [None, (torch.zeros(1, 4, 16, 16),) * 2, torch.zeros(1, 1)])
def test_what_a_guider_returns_may_be_anything(denoised):
    path = SamplingPath(NoisePrediction(), [4.0, 2.0, 0.0])
    path.leave(noise(1, 4.0), 4.0, denoised)
    assert path.arrive(noise(2, 4.0), 4.0) is False


@pytest.mark.parametrize("after", [3.6, 2.4, 1.2])
def test_a_tile_that_is_another_one_has_strayed(after):
    """However long the step: that of an EDM model's 20 takes a third of sigma and more."""
    path = SamplingPath(NoisePrediction(), [4.0, 2.0, 0.0])
    seen = Seen(4.0, noise(1, 4.0), torch.zeros(1, 4, 16, 16))
    assert not path.strayed(seen, noise(1, after), after)
    assert path.strayed(seen, noise(2, after), after)


def test_a_tile_that_guidance_moved_has_not():
    """The call told a picture of 1; with guidance it was 3."""
    path = SamplingPath(NoisePrediction(), [4.0, 2.0, 0.0])
    seen = Seen(4.0, noise(1, 4.0), torch.ones(1, 4, 16, 16))
    assert not path.strayed(seen, noise(1, 2.0) + 0.5 * 3, 2.0)
