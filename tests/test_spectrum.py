"""What follows from a latent alone: held against Wiener's filter, written out, and a network that is one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speca.schedule import NoiseLevel
from speca.spectrum import Spectrum


def flow(sigma):
    return NoiseLevel(sigma, 1 - sigma, sigma, 1.0, -sigma)


def eps(sigma):
    return NoiseLevel(sigma, 1.0, sigma, 1.0, -sigma)


SHAPES = [(1, 4), (1, 3, 10), (1, 3, 8, 6), (1, 2, 3, 5, 4)]


def noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(SHAPES), st.sampled_from([flow, eps]), st.floats(0.02, 0.98), st.floats(0.02, 0.98))
def test_an_output_is_what_its_latent_and_its_rest_say(shape, kind, sigma, other):
    x, output = noise(shape, 1), noise(shape, 2)
    spectrum = Spectrum.of(noise(shape, 3))
    torch.testing.assert_close(
        spectrum.output(kind(sigma), x, spectrum.rest(kind(sigma), x, output)), output, atol=1e-4, rtol=1e-4
    )
    assert spectrum.output(kind(other), x, spectrum.rest(kind(sigma), x, output)).shape == x.shape


@pytest.mark.parametrize("kind", [flow, eps])
def test_without_a_rest_it_is_wieners_filter(kind):
    """One channel of one row of two pixels: the frequencies are their sum and difference over the root of 2."""
    level, shown, x = kind(0.6), torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.5, -2.0]]])
    spectrum = Spectrum.of(shown)
    output = spectrum.output(level, x, torch.zeros(()))
    for sign in (1, -1):
        power = (shown[..., 0] + sign * shown[..., 1]).item() ** 2 / 2
        picture = level.signal * power / (level.signal**2 * power + level.noise**2)
        denoised = level.denoised(x, output)
        assert (denoised[..., 0] + sign * denoised[..., 1]).item() == pytest.approx(picture * (0.5 + sign * -2.0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [flow, eps])
def test_a_picture_follows_its_latent_as_far_as_the_noise_lets_it(kind, shape):
    """Of white data by one share everywhere; wholly where there is no noise, and ever less with more."""
    x = noise(shape, 1)
    spectrum = Spectrum.white(x)
    torch.testing.assert_close(spectrum.shown(kind(0.6), x), x * float(kind(0.6).shows(torch.ones(()))))
    torch.testing.assert_close(Spectrum.of(noise(shape, 2) + 9).shown(kind(1e-6), x), x, atol=1e-3, rtol=1e-3)
    lengths = [float(spectrum.shown(kind(sigma), x).norm()) for sigma in (0.7, 0.9, 0.99)]
    assert lengths == sorted(lengths, reverse=True)


def test_a_picture_follows_in_what_it_has_and_not_in_what_it_lacks():
    """A flat one in its mean alone."""
    flat, x = torch.full((1, 1, 8, 8), 3.0), noise((1, 1, 8, 8), 1)
    shown = Spectrum.of(flat).shown(eps(0.5), x)
    torch.testing.assert_close(shown, x.mean().expand_as(x) * (9 * 64) / (9 * 64 + 0.25), atol=1e-5, rtol=1e-4)


def test_a_channel_and_its_coarse_part_have_powers_of_their_own():
    coarse = torch.zeros(1, 2, 8, 8)
    coarse[:, 1] = 5.0
    power = Spectrum.of(coarse).power
    assert power[0, 1, 0, 0] == pytest.approx(25 * 64)
    assert power.sum() == pytest.approx(25 * 64)


def test_frequencies_of_one_length_are_as_strong_as_their_mean():
    """Stripes along one side, of 4 cycles: those along the other side, of 4 cycles too, count as alike."""
    stripes = torch.cos(torch.arange(16) * 2 * torch.pi * 4 / 16).expand(1, 1, 16, 16)
    power = Spectrum.of(stripes).power[0, 0]
    assert power[0, 4] == pytest.approx(power[4, 0].item())
    assert power[0, 4] > 0
    assert power[0, 5] == pytest.approx(0.0, abs=1e-6)


def test_noise_added_to_the_latent_is_told_from_the_picture():
    """A network that is Wiener's filter of pictures whose strength falls with frequency is foreseen from a latent with
    fresh noise, to a third of what taking all frequencies alike leaves."""
    shape = (1, 4, 32, 32)
    weight = 20 / (
        1 + torch.stack(torch.meshgrid(torch.fft.fftfreq(32), torch.fft.fftfreq(32), indexing="ij")).mul(32).norm(dim=0)
    )
    picture = torch.fft.ifft2(torch.fft.fft2(noise(shape, 0)) * weight).real

    def network(level, x):
        gain = level.signal * weight**2 / (level.signal**2 * weight**2 + level.noise**2)
        shown = torch.fft.ifft2(torch.fft.fft2(x) * gain).real
        return (shown - level.latent_gain * x) / level.output_gain

    before, after = flow(0.7), flow(0.6)
    x, fresh = (
        before.signal * picture + before.noise * noise(shape, 1),
        after.signal * picture + after.noise * noise(shape, 2),
    )
    truth = network(after, fresh)

    def left(spectrum):
        forecast = spectrum.output(after, fresh, spectrum.rest(before, x, network(before, x)))
        return float((forecast - truth).norm() / truth.norm())

    assert left(Spectrum.of(picture)) < left(Spectrum.white(picture)) / 3
