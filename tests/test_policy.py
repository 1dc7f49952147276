"""What is decided before a call, one line per rule."""

import pytest

from speca.config import SpeCaConfig
from speca.policy import Situation, decide, needs_anchor

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
        ({"expected_error": 0.1}, "speculate", ""),
        ({"expected_error": 0.11}, "full", "expected_over"),
    ],
)
def test_rules(changed, action, reason):
    decision = decide(CONFIG, Situation(**{**READY, **changed}))
    assert (decision.action, decision.reason) == (action, reason)
    assert decision.limit == {"run_limit": 3, "expected_over": 0.11}.get(reason)


def test_threshold_zero_computes_everything_and_keeps_nothing():
    config = SpeCaConfig(threshold=0.0)
    assert decide(config, Situation(**READY)).reason == "threshold_zero"
    assert not needs_anchor(config, 0.5)


def test_no_anchor_is_kept_once_no_forecast_can_follow():
    assert needs_anchor(CONFIG, 0.9)
    assert not needs_anchor(CONFIG, 0.95)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", -0.1),
        ("threshold", float("nan")),
        ("order", 5),
        ("order", -1),
        ("warmup_steps", 0),
        ("max_consecutive", 0),
        ("end_percent", 1.5),
        ("threshold_end_factor", 0.0),
        ("error_metric", "l3"),
        ("forecaster", "spline"),
        ("cache_device", "disk"),
        ("noise_gain_limit", 0.5),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_type_instead(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*(type a number from|choose one of)"):
        SpeCaConfig(**{field: value})


def test_an_empty_range_is_an_error():
    with pytest.raises(ValueError, match="start_percent"):
        SpeCaConfig(start_percent=0.5, end_percent=0.5)
