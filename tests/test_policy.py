"""What is decided before a call, one line per rule."""

from dataclasses import replace

import pytest
import torch

from fake_network import HEADER, REUSE, Renoised, errors, latent_of, run
from speca.call import Call
from speca.config import SpeCaConfig
from speca.policy import Situation, decide, needs_anchor
from speca.session import Session

CONFIG = SpeCaConfig(threshold=0.1, warmup_steps=2, max_consecutive=3, start_percent=0.2, end_percent=0.9)
READY = {"calls": 5, "verifiable": True, "in_a_row": 0, "progress": 0.5}


@pytest.mark.parametrize(
    ("changed", "action", "reason"),
    [
        ({}, "speculate", ""),
        ({"calls": 1}, "full", "warm_up"),
        ({"calls": 2}, "speculate", ""),
        ({"progress": 0.19}, "full", "outside_range"),
        ({"progress": 0.2}, "speculate", ""),
        ({"progress": 0.91}, "full", "outside_range"),
        ({"verifiable": False}, "full", "no_anchor"),
        ({"in_a_row": 2}, "speculate", ""),
        ({"in_a_row": 3}, "full", "run_limit"),
        ({"in_vain": 0.11}, "full", "in_vain"),
        ({"in_vain": 0.1}, "speculate", ""),
        ({"expected_error": 0.1}, "speculate", ""),
        ({"expected_error": 0.11}, "full", "expected_over"),
    ],
)
def test_rules(changed, action, reason):
    decision = decide(CONFIG, Situation(**{**READY, **changed}), 0.1)
    assert (decision.action, decision.reason) == (action, reason)
    assert decision.limit == {"run_limit": 3, "expected_over": 0.11}.get(reason)


def test_threshold_zero_computes_everything_and_keeps_nothing():
    config = SpeCaConfig(threshold=0.0)
    assert decide(config, Situation(**READY), 0.0).reason == "threshold_zero"
    assert not needs_anchor(config, 0.5)


def test_in_speed_mode_the_threshold_that_was_set_does_not_count():
    config = replace(CONFIG, threshold=0.0, mode="speed", target_speedup=2.0)
    assert decide(config, Situation(**READY), 0.1).action == "speculate"
    assert decide(config, Situation(**READY), 0.0).reason == "affordable"
    assert needs_anchor(config, 0.5)
    assert decide(replace(config, target_speedup=1.0), Situation(**READY), 0.1).reason == "threshold_zero"


def test_no_anchor_is_kept_once_no_forecast_can_follow():
    assert needs_anchor(CONFIG, 0.9)
    assert not needs_anchor(CONFIG, 0.95)


def test_no_forecast_is_tried_whose_error_must_pass_the_threshold():
    """As in test_session, then from 12: 1/13 = .077; that grown and 2/14 is .251; that grown is .351, and adding as
    much as last time makes it .494, over .26 before anything is run."""
    config = replace(REUSE, accumulate_error=True, threshold=0.26)
    outcomes, networks, session = run(config, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0])
    assert [each[0] for each in outcomes] == ["full", "full", "accepted", "rejected", "accepted", "accepted", "full"]
    row = session.tally.record().calls[-1].rows[0]
    assert row.reason == "expected_over"
    assert row.limit == pytest.approx(1.4 * (1.4 / 13 + 2 / 14) + 2 / 14)
    assert networks[-1].speculated_rows == []


def test_with_fresh_noise_no_error_is_expected():
    """Repeating a rest of 1 where it is 2 is wrong by 2/4, twice too much. Then 2 is repeated for 4, wrong by 4/8; once
    more would be too much again, but the rest is 2.5 next, and 1/5 is not."""
    config = replace(REUSE, threshold=0.9, accumulate_error=True)
    session = Session(config, HEADER)
    for i, rest in enumerate([1.0, 1.0, 2.0, 2.0, 4.0, 2.5]):
        time, latent = 9.0 - i, latent_of(torch.zeros(1, 4), 0.5, 2.0)
        call = Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True)
        session.evaluate(call, Renoised(time, 0.0, rest=rest))
    outcomes = [call.outcome for call in session.tally.record().calls]
    assert outcomes == ["full", "full", "accepted", "rejected", "accepted", "accepted"]
    assert errors(session)[2:] == pytest.approx([0.5, 1.0, 0.5, 0.7])
