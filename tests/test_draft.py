"""What anchors say of a call: from one, from several, at an anchor's own time, and through a sampler's fresh noise."""

import math
from dataclasses import replace

import pytest
import torch

from fake_network import HEADER, ONCE, REUSE, FakeNetwork, Renoised, call_at, errors, latent_of, run, two_full_calls
from speca.call import Call, Latent
from speca.config import SpeCaConfig
from speca.schedule import NoiseLevel
from speca.session import Session


def test_a_forecast_that_repeats_an_anchor_is_still_checked_against_a_line():
    """Order 0 repeats the features; the output is forecast in a straight line, so that an error can be seen at all.
    Outputs 1, 2, then 4: the line says 3, wrong by 1/4; its copy of the last output would have been its own witness.
    The line reaches 1/3 beyond that copy."""
    config = replace(REUSE, order=0, noise_gain_limit=100.0)
    _, _, session = run(config, [0.0, 1.0, 2.0], value=lambda time, row: 2.0**time)
    assert errors(session)[2] == pytest.approx(math.sqrt(1 / 4 * 1 / 3))


@pytest.mark.parametrize(("x", "error"), [(3.0, 1 / 5), (7.0, 1 / 5 + 2 / 4)])
def test_one_anchor_whose_embedded_input_is_not_known_is_repeated_whole(x, error):
    """An output of 4 is repeated where the last block says 5: wrong by 1/5. The latent moved from 3 to `x`, and half of
    that shows in the output: where it moved by 4, another guess is 6, and the repetition leaves out 2 of 4. The answer
    lies half-way."""
    session = Session(replace(ONCE, threshold=1.0), HEADER)
    session.evaluate(call_at(2.0, 0, x=3.0), FakeNetwork(2.0, 1, lambda t, r: 4.0, embedded=None))
    (output,) = session.evaluate(call_at(1.0, 1, x=x), FakeNetwork(1.0, 1, lambda t, r: 5.0))
    row = session.tally.record().calls[1].rows[0]
    assert row.outcome == "accepted"
    assert row.error == pytest.approx(error)
    assert torch.equal(output, torch.full((1, 4), 4.5))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (call_at(2.0, 0), call_at(1.0, 1)),
        (call_at(2.0, 0), call_at(1.0, 1, x=3.0)),
        (call_at(2.0, 0, x=3.0), call_at(2.0, 1, x=3.0)),
        (call_at(2.0, 0, x=3.0, renoised=True), call_at(1.0, 1, x=3.0, renoised=True)),
    ],
    ids=["no latent", "anchor without latent", "at one time", "renoised"],
)
def test_one_anchor_is_not_enough_where_a_repetition_cannot_be_judged(first, second):
    session = Session(replace(ONCE, threshold=1e9), HEADER)
    for call in (first, second, call_at(0.5, 2, x=3.0, renoised=second.renoised)):
        session.evaluate(call, FakeNetwork(call.time, 1, lambda t, r: 4.0, embedded=None))
    assert [call.rows[0].reason for call in session.tally.record().calls][:2] == ["warm_up", "no_anchor"]


def test_one_anchor_is_repeated_on_the_embedded_input():
    """Features of 4, of which 1 is the embedded input's. The output of 4 is half the latent, 3, and 2.5, which weighs
    twice as much at the second call's noise level: at a latent of 7 another 8.5 follows. The last block says 8, and
    half of the answer is the direct forecast."""
    session = Session(replace(ONCE, threshold=1.0), HEADER)
    session.evaluate(call_at(2.0, 0, x=3.0, spread=0.1), FakeNetwork(2.0, 1, lambda t, r: 4.0, embedded=1.0))
    network = FakeNetwork(1.0, 1, lambda t, r: 8.0)
    (output,) = session.evaluate(call_at(1.0, 1, x=7.0, spread=0.2), network)
    ((features,), on_embedded) = network.given
    assert torch.equal(features, torch.full((1, 4), 3.0))
    assert list(on_embedded) == [True]
    assert errors(session)[1] == pytest.approx(0.5 / 8 + 4.5 / 8.5)
    torch.testing.assert_close(output, torch.full((1, 4), 8.0 + 0.5 * 0.5))


@pytest.mark.parametrize(("now", "error"), [(3.0, 0.0), (4.0, 0.5 / 4), (7.0, 2.0 / 4)])
def test_a_second_call_at_an_anchors_time_is_judged_by_what_the_latent_changed(now, error):
    """Features and output would repeat the anchor's own and look perfect. The latent moved from 3 to `now`, and half of
    that shows in the output: (now - 3) / 2 against an output of 4."""
    session = two_full_calls(REUSE, (3.0, 3.0))
    latent = latent_of(torch.full((1, 4), now), 0.5, 1.0)
    session.evaluate(Call(2.0, 2.0, 2, 0.0, 1, ("s",), latent=latent), FakeNetwork(2.0, 1, lambda t, r: 4.0))
    row = session.tally.record().calls[2].rows[0]
    assert row.error == pytest.approx(error)
    assert row.outcome == ("accepted" if error <= 0.25 else "rejected")


def test_a_second_call_at_an_anchors_time_without_a_latent_is_computed():
    session = two_full_calls(REUSE, (None, None))
    session.evaluate(Call(2.0, 2.0, 2, 0.0, 1, ("s",)), FakeNetwork(2.0, 1, lambda t, r: 4.0))
    row = session.tally.record().calls[2].rows[0]
    assert (row.outcome, row.reason) == ("full", "no_anchor")


def test_or_judged_by_a_line_through_anchors_of_other_times():
    """Outputs 1, 2, 4 at times 0, 1, 2, and again at 2: the line through the first two says 3, and 3 is not 4. Nor
    is it what the newest anchor says, by 1/3."""
    session = Session(replace(REUSE, warmup_steps=3, order=2, noise_gain_limit=100.0), HEADER)
    for i, time in enumerate([0.0, 1.0, 2.0, 2.0]):
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",)), FakeNetwork(time, 1, lambda t, r: 2.0**t))
    assert session.tally.record().calls[3].rows[0].error == pytest.approx(math.sqrt(1 / 4 * 1 / 3))


def test_fresh_noise_in_the_latent_is_no_forecast_error():
    """x jumps about; what the anchors forecast is the rest, and x is this call's own."""
    session = Session(SpeCaConfig(threshold=1e-5), HEADER)
    for i, (time, x) in enumerate(zip([5.0, 4.0, 3.0, 2.0, 1.0], [9.0, -7.0, 8.0, -6.0, 5.0], strict=True)):
        network = Renoised(time, x, rest=3.0)
        latent = latent_of(torch.full((1, 4), x), 0.5, 2.0)
        call = Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True)
        (output,) = session.evaluate(call, network)
        torch.testing.assert_close(output, network._values(None))
        assert network.asked_relative == [True]
    assert [call.outcome for call in session.tally.record().calls] == ["full"] * 2 + ["accepted"] * 3
    assert all(call.rows[0].error < 1e-6 for call in session.tally.record().calls[2:])


def test_noise_that_is_gone_is_seen_though_both_forecasts_hold_it():
    """A network that predicts noise, and 1 was in both latents of a picture of 100. Fresh noise is -1: the latent 99 at
    sigma 1 shows it, held against that picture. The anchors' outputs go on saying 1 and the last block says 0.8: they
    lie 1/4 apart, the picture lies 2 from the first."""
    session = Session(SpeCaConfig(threshold=1.0), HEADER)
    for i, (sigma, x, says) in enumerate([(3.0, 103.0, 1.0), (2.0, 102.0, 1.0), (1.0, 99.0, 0.8)]):
        level = NoiseLevel(sigma, signal=1.0, noise=sigma, latent_gain=1.0, output_gain=-sigma)
        latent = Latent(torch.full((1, 1, 4), x), level)
        call = Call(sigma, sigma, i, 0.0, 1, ("s",), level=level, latent=latent, renoised=True)
        network = FakeNetwork(sigma, 1)
        network._values = lambda rows, says=says: torch.full((1, 1, 4), says)
        session.evaluate(call, network)
    assert session.tally.record().calls[2].rows[0].error == pytest.approx(math.sqrt(1 / 4 * 2), rel=0.02)


def test_with_fresh_noise_a_forecast_amplifies_less():
    """The rest is 1, 2 and then 3. A straight line would have a gain of 3; at 2, half the way is left: the output is 5
    instead of 6, and reuse would say 4."""
    session = Session(SpeCaConfig(threshold=1.0, order=1, noise_gain_limit=100.0), HEADER)
    for i, time in enumerate([1.0, 2.0, 3.0]):
        latent = latent_of(torch.zeros(1, 4), 0.5, 2.0)
        call = Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True)
        session.evaluate(call, Renoised(time, 0.0, rest=time))
    assert session.tally.record().calls[2].rows[0].error == pytest.approx(math.sqrt(1 / 6 * 1 / 5))
