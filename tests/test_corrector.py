"""What forecasts led astray is found again, in a world where the picture is known and every step is Euler's."""

import math

import pytest
import torch

from fake_network import HEADER, FakeNetwork
from speca.call import Call, Latent
from speca.config import SpeCaConfig
from speca.corrector import Astray, Corrector, put_right, seen_from
from speca.path import SamplingPath
from speca.schedule import NoiseLevel
from speca.session import Session

SIGMAS = (0.9, 0.75, 0.6, 0.4, 0.3, 0.0)
PICTURE = torch.tensor([[0.3, -0.2, 1.0, 0.0]])


def flow(sigma):
    return NoiseLevel(sigma, 1 - sigma, sigma, 1.0, -sigma)


def noise_prediction(sigma):
    return NoiseLevel(sigma, 1.0, sigma, 1.0, -sigma)


def edm(sigma, data=0.5):
    total = data**2 + sigma**2
    return NoiseLevel(sigma, 1.0, sigma, data**2 / total, sigma * data / math.sqrt(total))


KINDS = pytest.mark.parametrize("kind", [flow, noise_prediction, edm])


def call_at(step, kind=flow, ahead=None):
    sigma = SIGMAS[step]
    return Call(
        sigma, sigma, step, 0.0, 1, ("s",), level=kind(sigma), ahead=SIGMAS[step + 1] if ahead is None else ahead
    )


def output(kind, sigma, x):
    """Of a network that shows `PICTURE`, whatever it is given."""
    level = kind(sigma)
    return (PICTURE - level.latent_gain * x) / level.output_gain


def euler(kind, step, x, out):
    sigma, after = SIGMAS[step], SIGMAS[step + 1]
    return x + (after - sigma) / sigma * (x - kind(sigma).denoised(x, out))


def true_way(kind, x):
    way = [x]
    for step, sigma in enumerate(SIGMAS[:-1]):
        way.append(euler(kind, step, way[-1], output(kind, sigma, way[-1])))
    return way


@pytest.mark.parametrize("kind", [flow, noise_prediction])
def test_how_far_a_latent_strayed_is_found_and_put_right(kind):
    """On this way the output never changes, so the line between its ends is the truth, and all of it is put right."""
    start = torch.tensor([[2.0, -1.0, 0.5, 0.1]])
    way = true_way(kind, start)
    corrector = Corrector()
    before = output(kind, SIGMAS[0], start)
    corrector.computed(call_at(0, kind))
    x = euler(kind, 0, start, before)
    for step in (1, 2):
        wrong = before + torch.randn(1, 4, generator=torch.Generator().manual_seed(step))
        corrector.accepted(call_at(step, kind), wrong)
        x = euler(kind, step, x, wrong)
    call = call_at(3, kind)
    out = output(kind, SIGMAS[3], x)
    strayed = corrector.strayed(call, before, out)
    torch.testing.assert_close(x + strayed, way[3])
    (moved,) = put_right(call, (out,), [Astray(strayed, torch.zeros_like(strayed))])  # this picture never moves
    torch.testing.assert_close(euler(kind, 3, x, moved), way[4])


@KINDS
def test_forecasts_on_the_line_led_nothing_astray(kind):
    """An output that grows along a straight line in time, forecast rightly, of a network that leaves its latent alone
    but for the picture: nothing is found where nothing is wrong."""
    corrector = Corrector()
    at = {step: torch.full((1, 4), 1.0 + 2.0 * SIGMAS[step]) for step in range(4)}
    corrector.computed(call_at(0, kind))
    for step in (1, 2):
        corrector.accepted(call_at(step, kind), at[step])
    strayed = corrector.strayed(call_at(3, kind), at[0], at[3])
    torch.testing.assert_close(strayed, torch.zeros(1, 4), atol=1e-6, rtol=0)


@KINDS
def test_what_later_forecasts_start_from_shows_the_picture_put_right(kind):
    level, x = kind(0.5), torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    out, astray = torch.randn_like(x), Astray(0.1 * torch.randn_like(x), 0.05 * torch.randn_like(x))
    shown = level.denoised(x + astray.latent, seen_from(level, out, astray))
    torch.testing.assert_close(shown, level.denoised(x, out) + astray.picture)


@KINDS
@pytest.mark.parametrize("step", [2, 4])
def test_a_step_ends_where_it_would_have_from_the_right_latent_with_the_right_picture(kind, step):
    """The last one at the picture, whatever the latent was."""
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    out, astray = torch.randn_like(x), Astray(0.1 * torch.randn_like(x), 0.05 * torch.randn_like(x))
    (moved,) = put_right(call_at(step, kind), (out,), [astray])
    from_right = seen_from(kind(SIGMAS[step]), out, astray)
    torch.testing.assert_close(euler(kind, step, x, moved), euler(kind, step, x + astray.latent, from_right))


def test_only_rows_that_strayed_are_moved():
    out = torch.ones(2, 4)
    (moved,) = put_right(call_at(2), (out,), [None, Astray(torch.ones(1, 4), torch.zeros(1, 4))])
    assert torch.equal(moved[0], out[0])
    assert not torch.equal(moved[1], out[1])


@pytest.mark.parametrize("lost", ["nothing accepted", "another sigma", "another sampler", "a jump"])
def test_nothing_is_put_right_that_is_not_known(lost):
    corrector = Corrector()
    corrector.computed(call_at(0))
    if lost != "nothing accepted":
        corrector.accepted(call_at(1, ahead=0.5 if lost == "another sigma" else None), torch.ones(1, 4))
    if lost == "a jump":
        corrector.lose_track()
    call = Call(0.6, 0.6, 2, 0.0, 1, ("s",), level=flow(0.6), ahead=None if lost == "another sampler" else 0.4)
    assert corrector.strayed(call, torch.ones(1, 4), torch.zeros(1, 4)) is None


class Flow:
    def noise_scaling(self, sigma, noise, latent):
        return sigma * noise + (1 - sigma) * latent

    def calculate_denoised(self, sigma, output, x):
        return x - sigma * output


def walk(step):
    """The path of a sampler that moves x by `step(x, denoised, sigma, after)`."""
    path = SamplingPath(Flow(), SIGMAS)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    known = []
    for i, sigma in enumerate(SIGMAS[:-1]):
        path.arrive(x, sigma)
        known.append(path.ahead(sigma))
        denoised = 0.5 * torch.ones_like(x)
        path.leave(x, sigma, denoised)
        x = step(i, x, denoised, sigma, SIGMAS[i + 1])
    return known


def eulers(i, x, denoised, sigma, after):
    return x + (after - sigma) / sigma * (x - denoised)


def test_how_a_step_goes_on_is_known_of_eulers():
    assert walk(eulers) == list(SIGMAS[1:])


def test_a_step_of_a_higher_order_counts_as_eulers():
    assert walk(lambda i, x, d, s, a: x + (1.2 if i else 1) * (a - s) / s * (x - d)) == list(SIGMAS[1:])


@pytest.mark.parametrize("odd", ["noise", "cfg++", "back"])
def test_it_is_not_known_of_others_from_their_first_odd_step_on(odd):
    def step(i, x, denoised, sigma, after):
        straight = eulers(i, x, denoised, sigma, after)
        if i != 1:
            return straight
        moved = {"noise": torch.randn_like(x), "cfg++": (denoised - x) * 0.5, "back": x - straight}
        return straight + moved[odd]

    assert walk(step) == [*SIGMAS[1:3], None, None, None]


def test_it_is_not_known_between_the_sigmas_of_a_schedule():
    """As heun and dpm_2 ask."""
    path = SamplingPath(Flow(), SIGMAS)
    x = torch.zeros(1, 4, 4, 4)
    for sigma in (0.9, 0.8):
        path.arrive(x, sigma)
        path.leave(x, sigma, x)
    assert path.ahead(0.8) is None
    path.arrive(x, 0.75)
    assert path.ahead(0.75) is None


def session_over(kind, threshold, wrong_by=0.0):
    """(what a session hands to an Euler sampler, what its network says) at each call: one that shows `PICTURE` and
    whose last block is wrong by `wrong_by` on forecast features."""
    session, x, told = Session(SpeCaConfig(threshold=threshold), HEADER), torch.tensor([[2.0, -1.0, 0.5, 0.1]]), []

    class Network(FakeNetwork):
        def _values(self, rows):
            return output(kind, self.time, x)

        def speculate(self, features, rows, on_embedded=()):
            return (super().speculate(features, rows, on_embedded)[0] + wrong_by,)

    for step, sigma in enumerate(SIGMAS[:-1]):
        level = kind(sigma)
        latent = Latent(x, level)
        call = Call(sigma, sigma, step, 0.0, 1, ("s",), level=level, ahead=SIGMAS[step + 1], latent=latent)
        network = Network(sigma, 1)
        (out,) = session.evaluate(call, network)
        told.append((out, network._values(None)))
        x = euler(kind, step, x, out)
    return told, [call.rows[0].outcome for call in session.tally.record().calls], x


def test_a_run_without_forecasts_is_the_networks_own():
    told, outcomes, _ = session_over(flow, 0.0)
    assert set(outcomes) == {"full"}
    assert all(torch.equal(out, own) for out, own in told)


def test_a_run_is_put_right_by_its_next_computed_call():
    told, outcomes, _ = session_over(flow, 0.05, wrong_by=0.02)
    moved = [not torch.equal(out, own) for out, own in told]
    expected = [outcome == "accepted" for outcome in outcomes]
    for step in range(1, len(SIGMAS) - 1):
        expected[step] |= outcomes[step - 1] == "accepted"
    assert moved == expected
    assert {"accepted", "full"} <= set(outcomes)
