"""Checks that lead nowhere stop after a few, and are not given up for good."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speca.config import SpeCaConfig
from speca.patience import VAIN, Patience
from speca.policy import Situation, decide


def checks(errors: list[float], threshold: float = 1.0) -> list[int]:
    """The calls at which a check is made, if it would find these errors."""
    patience, made = Patience(), []
    for call, error in enumerate(errors):
        if patience.found > threshold:
            patience.computed()
            continue
        made.append(call)
        if error <= threshold:
            patience.accepted()
        else:
            patience.rejected(error, threshold)
    return made


def test_errors_that_do_not_fall_are_asked_for_less_and_less() -> None:
    assert checks([2.0] * 40) == [0, 1, 2, 4, 7, 11, 16, 22, 29, 37]
    assert VAIN == 3


def test_errors_that_fall_are_followed() -> None:
    assert checks([5.0, 4.0, 3.0, 2.0, 1.5, 0.9]) == list(range(6))


def test_errors_that_fall_too_slowly_to_get_within_are_not() -> None:
    """As on a schedule of many small steps at the end of a run."""
    assert checks([9.0 - 0.02 * i for i in range(40)]) == checks([2.0] * 40)


def test_errors_that_go_up_and_down_are_not_taken_for_falling() -> None:
    """Those of a sampler of two stages."""
    assert len(checks([9.0, 2.0] * 20)) <= len(checks([2.0] * 40))


def test_a_threshold_that_has_risen_over_them_is_worth_a_check() -> None:
    """In speed mode it rises where too much is computed; 40 % of the runs of one model waited to their end."""
    patience = Patience()
    for _ in range(VAIN):
        patience.rejected(2.0, 1.0)
    assert patience.found == 2.0
    situation = Situation(calls=5, verifiable=True, in_a_row=0, progress=0.5, in_vain=patience.found)
    assert decide(SpeCaConfig(), situation, 1.9).reason == "in_vain"
    assert decide(SpeCaConfig(), situation, 2.0).action == "speculate"


def test_an_error_that_is_no_number_tells_nothing() -> None:
    assert checks([float("inf")] * 12) == [0, 1, 2, 4, 7, 11]


def test_an_accepted_check_gives_back_all_trust() -> None:
    assert checks([2.0] * 7 + [0.5] + [2.0] * 5) == [0, 1, 2, 4, 7, 8, 9, 10, 12]


@pytest.mark.comfy
@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde"])
def test_samplers_whose_noise_decides_waste_few_checks(emoji: Any, sampler: str) -> None:
    """16 and 17 of 20 calls were checked for nothing."""
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    model = attach(emoji.models.load(emoji.models.FILES["flux"]), SpeCaConfig(threshold=0.02))
    with torch.inference_mode():
        emoji.models.sample(model, [7], steps=20, sampler=sampler)
    totals = attachment_of(model).run_of().totals
    assert totals.calls == 20
    assert totals.rejected <= 7
