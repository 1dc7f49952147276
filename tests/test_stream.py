"""Which stream a row belongs to, and what that keeps."""

import math
from dataclasses import replace

import pytest
import torch

from fake_network import HEADER, ONCE, REUSE, FakeNetwork, call_at, latent_of, two_full_calls
from speca.budget import NEW_SHARE
from speca.call import Call
from speca.session import Session
from speca.stream import Stream


def test_streams_of_separate_calls_do_not_mix():
    """Cond is constant at 10, uncond at 20, in calls of their own: each repeats its own value, without error."""
    session = Session(REUSE, HEADER)
    for step in range(4):
        for stream, level in (("cond", 10.0), ("uncond", 20.0)):
            network = FakeNetwork(float(step), 1, value=lambda time, row, level=level: level)
            (output,) = session.evaluate(Call(float(step), 1.0, step, 0.1, 1, (stream,)), network)
            assert output.unique().tolist() == [level]
    assert [c.rows[0].outcome for c in session.tally.record().calls] == ["full"] * 4 + ["accepted"] * 4
    assert {c.rows[0].error for c in session.tally.record().calls[4:]} == {0.0}


@pytest.mark.parametrize("embedded", [1.0, None])
def test_with_a_second_anchor_features_are_forecast_whole(embedded):
    """Features of 8, of which 1 is the embedded input's, which is not asked for any more."""
    session = Session(replace(ONCE, threshold=0.05), HEADER)
    for i, value in enumerate((4.0, 8.0, 8.0)):  # the repetition is far off and computed
        network = FakeNetwork(2.0 - i, 1, lambda t, r, value=value: value, embedded=embedded)
        session.evaluate(call_at(2.0 - i, i, x=3.0, spread=0.1), network)
    assert [call.outcome for call in session.tally.record().calls][1] in ("full", "rejected")
    ((features,), on_embedded) = network.given
    torch.testing.assert_close(features, torch.full((1, 4), 8.0))
    assert list(on_embedded) == [False]


def test_the_embedded_input_is_asked_for_where_it_will_be_kept():
    """It costs a copy of a video's features, or a second pass through what lies around the blocks."""
    call = call_at(2.0, 0, x=3.0)
    stream = Stream(3)
    assert stream.needs_embedded(call)
    stream.keep(call, 0, FakeNetwork(2.0, 1).full(None, True, True), 0, lambda tensor: tensor)
    assert stream.needs_embedded(call)  # takes its place
    assert not stream.needs_embedded(call_at(1.0, 1, x=3.0))
    stream.keep_relative()
    assert stream.needs_embedded(call_at(1.0, 1, x=3.0))


def test_samples_with_one_anchor_and_with_two_share_a_batch():
    """Only the first sample's repetition is rejected, so only the second goes on with what its blocks added."""
    session = Session(replace(ONCE, threshold=0.05, accumulate_error=False), HEADER)
    streams = ("a", "b")
    for i in range(3):
        latent = latent_of(torch.full((2, 4), 3.0), 0.5, 0.1)
        network = FakeNetwork(3.0 - i, 2, lambda t, r: 8.0 if r == 0 and t < 3 else 4.0, embedded=1.0)
        session.evaluate(Call(3.0 - i, 1.0, i, 0.0, 2, streams, latent=latent), network)
    ((features,), on_embedded) = network.given
    assert list(on_embedded) == [False, True]
    torch.testing.assert_close(features[:, 0], torch.tensor([8.0, 3.0]))


def test_anchors_from_before_the_noise_are_dropped():
    """Their features hold the embedded input, later ones do not."""
    session = two_full_calls(REUSE, (3.0, 3.0))
    latent = latent_of(torch.full((1, 4), 3.0), 0.5, 1.0)
    call = Call(3.0, 3.0, 2, 0.0, 1, ("s",), latent=latent, renoised=True)
    session.evaluate(call, FakeNetwork(3.0, 1, lambda t, r: 4.0))
    assert session.tally.record().calls[2].rows[0].reason == "no_anchor"
    assert session.streams.of(call)[0].history.times == [3.0]


def test_what_stays_astray_has_no_anchors_from_before():
    """After an accepted forecast the latent is not on the path of the anchors."""
    session = two_full_calls(REUSE, (3.0, 3.0))
    (stream,) = session.streams.of(call_at(2.0, 2))
    stream.stays_astray()
    assert stream.history.times == [1.0, 2.0]
    session.evaluate(call_at(3.0, 2, x=3.0), FakeNetwork(3.0, 1, lambda t, r: 4.0))
    assert stream.in_a_row == 1
    stream.stays_astray()
    assert stream.history.times == []


def test_the_first_check_tells_all_of_a_streams_rate_and_later_ones_a_share():
    stream, call = Stream(3), Call(1.0, 1.0, 0, 0.1, 1, ("s",))
    assert stream.rate is None
    stream.learn_rate(call, 0.02)
    assert stream.rate == pytest.approx(0.02)
    stream.learn_rate(call, 0.04)
    assert stream.rate == pytest.approx(0.02 ** (1 - NEW_SHARE) * 0.04**NEW_SHARE)
    stream.learn_rate(call, math.nan)
    assert stream.rate == pytest.approx(0.02 ** (1 - NEW_SHARE) * 0.04**NEW_SHARE)
