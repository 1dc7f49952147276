"""Settings are validated once, and an error says what to type instead."""

import pytest

from speca.config import SpeCaConfig


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
        ("mode", "fast"),
        ("target_speedup", 0.9),
    ],
)
def test_a_wrong_setting_is_named_with_what_to_type_instead(field, value):
    with pytest.raises(ValueError, match=rf"{field}.*(type a number from|choose one of)"):
        SpeCaConfig(**{field: value})


def test_an_empty_range_is_an_error():
    with pytest.raises(ValueError, match="start_percent"):
        SpeCaConfig(start_percent=0.5, end_percent=0.5)


@pytest.mark.parametrize(
    ("mode", "speed"),
    [("threshold", None), ("speed", 4.0), ("Faithful 1.5x", 1.5), ("Balanced 2x", 2), ("Fast 3x", 3), ("Draft 5x", 5)],
)
def test_the_speed_that_a_mode_asks_for(mode, speed):
    config = SpeCaConfig(mode=mode, target_speedup=4.0)
    assert config.speed == speed
    assert config.speculates
