"""On a real GPU: the same promises, with weights and anchors where a graphics card has them.

Skipped without a CUDA device and `--gpu`: `python dev.py test tests/test_cuda.py --gpu`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import contract_models
import tiny_models
from test_contract import ACCEPT, REJECT, attached, distance, outcomes, record_of, sample

pytestmark = [pytest.mark.comfy, pytest.mark.gpu, pytest.mark.usefixtures("endless_patience")]


@pytest.fixture(scope="module", params=["flux", "hunyuan_video", "wan21", "sd3", "dit"])
def tiny(request: pytest.FixtureRequest, comfy: None) -> Any:
    return contract_models.build(request.param)


def test_the_network_runs_on_the_card(tiny: Any) -> None:
    seen: set[str] = set()
    network = tiny.model_patcher.model.diffusion_model
    handle = network.register_forward_pre_hook(lambda module, args: seen.add(args[0].device.type))
    try:
        sample(tiny, attached(tiny.model_patcher, **ACCEPT))
    finally:
        handle.remove()
    assert seen == {"cuda"}


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


def test_anchors_in_system_memory_are_pinned(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied there at once, and given back with the run."""
    from speca.history import History

    record, pinned = History.record, []

    def note(self: History, anchor: Any) -> None:
        pinned.extend(f.is_pinned() for f in anchor.features)
        record(self, anchor)

    monkeypatch.setattr(History, "record", note)
    one_row = tiny._replace(cfg=1.0)
    sample(one_row, attached(tiny.model_patcher, **ACCEPT, cache_device="cpu"))
    assert pinned
    assert all(pinned)


def test_anchors_that_move_in_mid_run_give_the_same_picture(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from speca.comfyui.placement import Placement

    some = ACCEPT | {"max_consecutive": 1}
    on_the_card = sample(tiny, attached(tiny.model_patcher, **some, cache_device="gpu"))
    looks = iter([True, True])
    monkeypatch.setattr(Placement, "_fits", lambda self, device: next(looks, False))
    patcher = attached(tiny.model_patcher, **some, cache_device="auto")
    assert torch.equal(sample(tiny, patcher), on_the_card)
    assert "accepted" in outcomes(patcher)


def test_a_run_leaves_no_memory_behind(tiny: Any) -> None:
    """Anchors are freed with the run; only the record, which holds no tensor, stays."""
    patcher = attached(tiny.model_patcher, **ACCEPT, cache_device="gpu")
    sample(tiny, patcher)
    before = torch.cuda.memory_allocated()
    sample(tiny, patcher)
    assert record_of(patcher).totals.cache_bytes > 0
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["flux", "hunyuan_video"])
def test_weights_as_people_load_them(name: str, weights: torch.dtype, comfy: None) -> None:
    """Half precision, and eight bits computed in bfloat16."""
    tiny = tiny_models.build(name, dtype=weights)
    plain = sample(tiny)
    assert torch.isfinite(plain).all()
    for settings in ({"threshold": 0.0}, REJECT):
        assert torch.equal(sample(tiny, attached(tiny.model_patcher, **settings)), plain)
    patcher = attached(tiny.model_patcher, **ACCEPT)
    assert torch.isfinite(sample(tiny, patcher)).all()
    assert "accepted" in outcomes(patcher)


def test_weights_that_stay_in_system_memory(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's --novram: every layer fetches its weights when it is called."""
    import comfy.model_management

    everything_on_the_card = sample(tiny, attached(tiny.model_patcher, **ACCEPT))
    comfy.model_management.unload_all_models()
    monkeypatch.setattr(comfy.model_management, "vram_state", comfy.model_management.VRAMState.NO_VRAM)
    try:
        plain = sample(tiny)
        assert tiny.model_patcher.model.model_lowvram
        assert torch.equal(sample(tiny, attached(tiny.model_patcher, **REJECT)), plain)
        patcher = attached(tiny.model_patcher, **ACCEPT)
        assert distance(sample(tiny, patcher), everything_on_the_card) < 1e-3
        assert "accepted" in outcomes(patcher)
    finally:
        monkeypatch.undo()
        comfy.model_management.unload_all_models()
