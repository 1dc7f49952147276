"""How much of a picture its conditioning leaves open, on data whose variance is known."""

import math

import pytest
import torch

from speca.schedule import DECIDED_AT
from speca.undecided import TOO_SMALL, Undecided, coarse, power, variance_left_open


def shown(mean, z, variance, ratio):
    """What the best denoiser of N(mean, variance) shows along a run from the noise `z`."""
    return mean + z * variance / math.sqrt(variance + ratio**2)


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 16, 32, 48), (1, 16, 3, 32, 32)])
def test_coarse_white_noise_keeps_its_power(shape):
    """The channels of noise do not move together, so no direction of them has much more than another."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert coarse(noise).square().mean() == pytest.approx(1.0, rel=0.5)


def test_what_moves_together_counts_for_all_its_pixels():
    assert power(coarse(torch.full((1, 1, 32, 32), 0.5))) == pytest.approx(0.25 * 64)


def test_channels_that_move_together_count_as_one_direction():
    together = torch.full((1, 3, 8, 8), 0.5)
    apart = torch.zeros(1, 3, 8, 8)
    apart[:, 0], apart[:, 1, :4], apart[:, 1, 4:] = 0.5, 0.5, -0.5
    assert power(coarse(together)) == pytest.approx(3 * 0.25 * 4)
    assert power(coarse(apart)) == pytest.approx(0.25 * 4)


def test_latents_without_sides_are_pooled_too():
    assert power(coarse(torch.ones(1, 16))) > 0
    assert power(coarse(torch.ones(1, 2, 2, 3, 4, 5))) > 0


@pytest.mark.parametrize("variance", [0.1, 1.0, 7.0, 60.0])
@pytest.mark.parametrize(("before", "after"), [(math.inf, 40.0), (80.0, 20.0), (20.0, 8.0)])
def test_the_variance_of_normal_data_is_found(variance, before, after):
    change = shown(0.0, 1.0, variance, after) - shown(0.0, 1.0, variance, before)
    assert variance_left_open(change**2, before, after, at_most=1000.0) == pytest.approx(variance, rel=0.1)


def test_more_change_means_more_was_open_up_to_all_that_is_shown():
    found = [variance_left_open(change, 40.0, 10.0, at_most=50.0) for change in (0.0, 1e-4, 1e-2, 1.0, 1e9)]
    assert found == sorted(found)
    assert found[-1] == 50.0
    assert variance_left_open(1.0, 40.0, 10.0, at_most=0.0) == 0.0


def _seen(variance, ratios, mean=3.0):
    z = torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    stream = Undecided()
    for ratio in ratios:
        stream.see(ratio, mean + shown(0.0, z, variance, ratio))
    return stream


def test_a_run_learns_when_its_picture_is_decided():
    """One drawing is decided by its class, many by the noise; what both have in common, the mean, tells nothing."""
    ratios = (math.inf, 40.0, 18.0, 8.0)
    one, many = _seen(0.2, ratios), _seen(9.0, ratios)
    assert math.sqrt(one.variance) == pytest.approx(math.sqrt(0.2), rel=0.4)
    assert math.sqrt(many.variance) == pytest.approx(3.0, rel=0.4)


def test_what_a_run_learns_counts_for_half_beside_what_is_usual():
    """Four times as far apart in what they show, two runs are held to decide twice as far apart."""
    near, far = Undecided(), Undecided()
    near.variance, far.variance = 4.0, 64.0
    assert far.decided_at / near.decided_at == pytest.approx(2.0)
    as_usual = Undecided()
    as_usual.variance = (DECIDED_AT / TOO_SMALL) ** 2
    assert as_usual.decided_at == pytest.approx(DECIDED_AT)


def test_nothing_is_known_before_there_are_two_pictures_of_one_trajectory():
    assert _seen(1.0, (math.inf,)).decided_at is None
    jumped = _seen(1.0, (math.inf, 40.0))
    learnt = jumped.decided_at
    jumped.start_anew()
    jumped.see(20.0, torch.full((1, 8, 16, 16), 100.0))
    assert jumped.decided_at == learnt


def test_nothing_more_is_learnt_once_the_picture_is_decided():
    """Late pictures hardly differ: that says nothing of what was open before."""
    learnt = _seen(9.0, (math.inf, 40.0, 18.0, 8.0)).decided_at
    assert _seen(9.0, (math.inf, 40.0, 18.0, 8.0, 1.0, 0.1)).decided_at == learnt


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_picture_that_is_no_picture_tells_nothing(number):
    """What the network makes of it is the network's affair: nothing is raised, and what was learnt stays."""
    stream = _seen(9.0, (math.inf, 40.0))
    learnt = stream.decided_at
    stream.see(18.0, torch.full((1, 8, 16, 16), number))
    assert stream.decided_at == learnt
    again = _seen(9.0, (math.inf, 40.0, 18.0))
    stream.see(18.0, 3.0 + shown(0.0, torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1)), 9.0, 18.0))
    assert stream.decided_at == again.decided_at


class NotInDouble(torch.Tensor):
    """A tensor of a device that knows no fp64 and has no eigenvalues, as Apple's."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if function in (torch.Tensor.double, torch.linalg.eigvalsh):
            raise TypeError("this device has no float64")
        return super().__torch_function__(function, types, args, kwargs or {})


def test_cells_are_weighed_on_the_cpu():
    stream, there = Undecided(), Undecided()
    for ratio, value in ((40.0, 1.0), (10.0, 1.5)):
        picture = torch.full((1, 4, 16, 16), value)
        stream.see(ratio, picture)
        there.see(ratio, picture.as_subclass(NotInDouble))
    assert there.decided_at == stream.decided_at


def test_a_picture_of_nothing_leaves_nothing_open():
    stream = Undecided()
    for ratio in (10.0, 4.0):
        stream.see(ratio, torch.zeros(1, 4, 16, 16))
    assert stream.decided_at == 0.0
