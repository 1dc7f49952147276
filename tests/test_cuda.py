"""On a real GPU: the same promises, with weights and anchors where a graphics card has them.

Skipped without a CUDA device and `--gpu`: `python dev.py test tests/test_cuda.py --gpu`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import contract_models
from test_contract import ACCEPT, REJECT, attached, outcomes, record_of, sample

pytestmark = [pytest.mark.comfy, pytest.mark.gpu]


@pytest.fixture(scope="module", params=["flux", "hunyuan_video", "wan21", "sd3", "dit"])
def tiny(request: pytest.FixtureRequest, comfy: None) -> Any:
    return contract_models.build(request.param)


def test_threshold_zero_and_rejecting_everything_are_the_unpatched_model(tiny: Any) -> None:
    plain = sample(tiny)
    for settings in ({"threshold": 0.0}, REJECT):
        assert torch.equal(sample(tiny, attached(tiny.model_patcher, **settings)), plain)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde_gpu"])
def test_anchors_in_system_memory_give_the_same_picture(tiny: Any, sampler: str) -> None:
    def run(where: str) -> torch.Tensor:
        patcher = attached(tiny.model_patcher, **ACCEPT, cache_device=where)
        picture = sample(tiny, patcher, sampler=sampler)
        assert "accepted" in outcomes(patcher)
        assert torch.isfinite(picture).all()
        return picture

    assert torch.equal(run("cpu"), run("gpu"))


def test_a_run_leaves_no_memory_behind(tiny: Any) -> None:
    """Anchors are freed with the run; only the record, which holds no tensor, stays."""
    patcher = attached(tiny.model_patcher, **ACCEPT, cache_device="gpu")
    sample(tiny, patcher)
    before = torch.cuda.memory_allocated()
    sample(tiny, patcher)
    assert record_of(patcher).totals.cache_bytes > 0
    assert torch.cuda.memory_allocated() <= before
