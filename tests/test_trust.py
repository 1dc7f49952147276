"""Forecasts that are not checked: when they are trusted, what they answer, and what is said of them; by hand."""

from dataclasses import replace

import pytest
import torch

from fake_network import HEADER, REUSE, FakeNetwork, latent_of
from speca.call import Call
from speca.config import SpeCaConfig
from speca.policy import Situation, decide
from speca.schedule import NoiseLevel, Schedule
from speca.session import Session

# The direct forecast is the line through the last two outputs; the last block tells `value`.
TRUSTING = replace(REUSE, threshold=1.0, accumulate_error=True, check_every=2, order=1, noise_gain_limit=100.0)


def play(config, times, value=lambda time, row: 1 + time):
    """(rows, outputs, networks) of one stream, call by call."""
    session = Session(config, HEADER)
    outputs, networks = [], [FakeNetwork(time, 1, value) for time in times]
    for i, (time, network) in enumerate(zip(times, networks, strict=True)):
        (output,) = session.evaluate(Call(time, time, i, i / len(times), 1, ("s",)), network)
        outputs.append(output[0, 0].item())
    return [call.rows[0] for call in session.tally.record().calls], outputs, networks


def outcomes(rows):
    return [row.outcome for row in rows]


@pytest.mark.parametrize(
    ("check_every", "expected"),
    [
        (1, ["accepted"] * 6),
        (2, ["accepted", "trusted"] * 3),
        (3, ["accepted", "trusted", "trusted"] * 2),
        (100, ["accepted", *["trusted"] * 5]),
    ],
)
def test_each_so_many_th_forecast_is_checked_the_first_one_too(check_every, expected):
    rows, _, networks = play(replace(TRUSTING, check_every=check_every), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert outcomes(rows) == ["full", "full", *expected]
    ran = [bool(network.full_rows or network.speculated_rows) for network in networks]
    assert ran == [row.outcome != "trusted" for row in rows]


def test_a_trusted_answer_goes_on_as_the_last_check_found_that_forecasts_are_off():
    """Outputs 1, 2, then 3.5: the line says 3, and the last block half more; the answer is half-way. The line to 4 and
    as much more are 4.25."""
    told = {0.0: 1.0, 1.0: 2.0, 2.0: 3.5, 3.0: 99.0}
    rows, outputs, _ = play(TRUSTING, [0.0, 1.0, 2.0, 3.0], lambda time, row: told[time])
    assert outcomes(rows)[2:] == ["accepted", "trusted"]
    assert outputs[2:] == pytest.approx([3.25, 4.25])


def test_what_is_trusted_counts_as_much_more_as_it_reaches_farther_and_is_said_so():
    """An error e is accepted one step from the newest anchor; two steps from it 2 e are added, to 1.4 e that are
    carried on. The check after it carries 1.4 times that."""
    rows, *_ = play(TRUSTING, [0.0, 1.0, 2.0, 3.0, 4.0], lambda time, row: 1 + time + 0.2 * (time >= 2))
    checked, trusted, after = rows[2:]
    assert (checked.outcome, trusted.outcome, after.outcome) == ("accepted", "trusted", "accepted")
    assert trusted.error == pytest.approx(3.4 * checked.error)
    assert (trusted.reason, trusted.threshold) == ("unchecked", 1.0)
    assert not trusted.checked
    assert trusted.skipped
    assert after.error > 1.4 * trusted.error


def test_what_would_pass_the_threshold_is_checked():
    _, found, *_ = (row.error for row in play(TRUSTING, [0.0, 1.0, 2.0, 3.0], bent)[0][1:])
    just = replace(TRUSTING, threshold=3.4 * found * 1.001)
    assert outcomes(play(just, [0.0, 1.0, 2.0, 3.0], bent)[0])[3] == "trusted"
    short = replace(TRUSTING, threshold=3.4 * found * 0.999)
    assert outcomes(play(short, [0.0, 1.0, 2.0, 3.0], bent)[0])[3] != "trusted"


def bent(time, row):
    return 1 + time + 0.05 * time**2


def test_nothing_is_trusted_after_a_computed_call_before_a_check():
    config = replace(TRUSTING, max_consecutive=2)
    rows, *_ = play(config, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert outcomes(rows) == ["full", "full", "accepted", "trusted", "full", "accepted", "trusted"]


def test_a_check_at_an_anchors_own_time_is_no_reason_to_trust_a_call_at_another():
    """The second call at time 1 is right to the last digit, for its own anchor says it all."""
    session = Session(TRUSTING, HEADER)
    for i, time in enumerate([0.0, 1.0, 1.0, 2.0, 3.0]):
        latent = latent_of(torch.full((1, 4), 3.0), 0.5, 1.0)
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",), latent=latent), FakeNetwork(time, 1, lambda t, r: 1 + t))
    rows = [call.rows[0] for call in session.tally.record().calls]
    assert rows[2].error == pytest.approx(0.0, abs=1e-6)
    assert outcomes(rows) == ["full", "full", "accepted", "accepted", "trusted"]


def test_nothing_is_trusted_where_the_sampler_adds_noise():
    times = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    session = Session(TRUSTING, HEADER)
    for i, time in enumerate(times):
        latent = latent_of(torch.full((1, 4), 3.0), 0.5, 1.0)
        call = Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True)
        session.evaluate(call, FakeNetwork(time, 1, lambda t, r: 4.0, embedded=1.0))
    assert "trusted" not in [call.rows[0].outcome for call in session.tally.record().calls]
    assert session.tally.totals().accepted > 1


def test_the_last_call_is_never_trusted():
    levels = tuple(NoiseLevel(1 - i / 4, i / 4, 1 - i / 4, 1.0, i / 4 - 1) for i in range(4))
    session = Session(TRUSTING, HEADER)
    for i in range(4):
        call = Call(float(i), 1 - i / 4, i, 0.0, 1, ("s",), schedule=Schedule(levels, 0.0))
        session.evaluate(call, FakeNetwork(float(i), 1, lambda t, r: 1 + t))
    assert outcomes([call.rows[0] for call in session.tally.record().calls])[2:] == ["accepted", "accepted"]


def test_a_latent_that_is_elsewhere_ends_the_trust():
    session = Session(TRUSTING, HEADER)
    found = []
    for i, time in enumerate([0.0, 1.0, 2.0, 3.0, 4.0]):
        if i == 3:
            session.streams.start_anew()
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",)), FakeNetwork(time, 1, lambda t, r: 1 + t))
        found.append(session.tally.record().calls[-1].rows[0].outcome)
    assert found == ["full", "full", "accepted", "full", "full"]


@pytest.mark.parametrize("splittable", [True, False])
def test_samples_are_trusted_one_by_one_where_a_batch_can_be_taken_apart(splittable):
    """Sample 1 is bent, so that its check leaves too little room; sample 0 is a line."""
    session = Session(replace(TRUSTING, threshold=0.1), HEADER)
    for i, time in enumerate([0.0, 1.0, 2.0, 3.0]):
        network = FakeNetwork(time, 2, lambda t, row: 1 + t + (0.12 * t**2 if row else 0.0), splittable=splittable)
        session.evaluate(Call(time, time, i, 0.0, 2, ("a", "b")), network)
    last = [row.outcome for row in session.tally.record().calls[-1].rows]
    assert "trusted" not in last[1:]
    assert (last[0] == "trusted") == splittable


def test_of_several_processes_one_doubt_is_all_of_theirs():
    """Another process would check what this one trusts: agreed on is the worst of both."""
    doubting = Session(TRUSTING, HEADER, agree=lambda values, device: [max(value, 1.0) for value in values])
    for i, time in enumerate([0.0, 1.0, 2.0, 3.0]):
        doubting.evaluate(Call(time, time, i, 0.0, 1, ("s",)), FakeNetwork(time, 1, lambda t, r: 1 + t))
    assert doubting.tally.totals().trusted == 0


def test_numbers_that_are_not_finite_are_computed():
    session = Session(TRUSTING, HEADER)
    for i, time in enumerate([0.0, 1.0, 2.0, 3.0]):
        if i == 3:
            session.streams.of(Call(time, time, i, 0.0, 1, ("s",)))[0].beside = (torch.full((1, 4), torch.inf),)
        (output,) = session.evaluate(Call(time, time, i, 0.0, 1, ("s",)), FakeNetwork(time, 1, lambda t, r: 1 + t))
    row = session.tally.record().calls[-1].rows[0]
    assert (row.outcome, row.reason) == ("full", "not_finite")
    assert torch.equal(output, torch.full((1, 4), 4.0))


def test_what_a_check_taught_is_kept_where_anchors_live_and_counted():
    session = Session(TRUSTING, HEADER, place=lambda tensor: tensor.double())
    for i, time in enumerate([0.0, 1.0, 2.0]):
        before = session.streams.nbytes
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",)), FakeNetwork(time, 1, lambda t, r: 1 + t))
    assert session.streams.nbytes - before == 4 * 8


def test_totals_and_prices_know_the_third_kind():
    session = Session(TRUSTING, HEADER)
    for i, time in enumerate([0.0, 1.0, 2.0, 3.0]):
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",), kind="all"), FakeNetwork(time, 1, lambda t, r: 1 + t))
    totals = session.tally.totals()
    assert (totals.full, totals.accepted, totals.trusted, totals.rejected) == (2, 1, 1, 0)
    assert totals.to_json()["trusted"] == 1


def test_a_situation_without_a_check_to_go_by_is_checked():
    ready = Situation(calls=5, verifiable=True, in_a_row=1, progress=0.5)
    assert decide(SpeCaConfig(threshold=0.1), ready, 0.1).action == "speculate"
    assert decide(SpeCaConfig(threshold=0.1), replace(ready, trusted=0.1), 0.1).action == "trust"
    assert decide(SpeCaConfig(threshold=0.1), replace(ready, trusted=0.11), 0.1).action == "speculate"
    assert decide(SpeCaConfig(threshold=0.1), replace(ready, trusted=0.1, expected_error=0.2), 0.1).action == "full"
