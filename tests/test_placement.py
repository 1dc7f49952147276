"""Where anchors go: by the setting, or by free memory, decided once a run."""

import pytest
import torch

from speca.config import SpeCaConfig

pytestmark = pytest.mark.comfy


class OnCard:
    """1000 bytes on a card; `to` tells where they went."""

    device = torch.device("cuda")

    def numel(self):
        return 250

    def element_size(self):
        return 4

    def to(self, where):
        return where


@pytest.fixture
def placed(comfy, monkeypatch):
    """f(setting, free bytes at each look) -> where a tensor goes each time."""
    import comfy.model_management

    from speca.comfyui.placement import Placement

    def place(setting, *free):
        looks = iter(free)
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: next(looks))
        placement, tensor = Placement(SpeCaConfig(order=1, cache_device=setting)), OnCard()
        return ["gpu" if placement(tensor) is tensor else placement(tensor) for _ in range(3)]

    return place


def test_a_setting_is_obeyed(placed):
    assert placed("gpu") == ["gpu"] * 3
    assert placed("cpu") == ["cpu"] * 3


def test_auto_takes_a_quarter_of_what_is_free_and_looks_once(placed):
    """Two streams with two anchors of 1000 bytes each."""
    assert placed("auto", 16_000) == ["gpu"] * 3
    assert placed("auto", 15_999) == ["cpu"] * 3


def test_what_is_in_system_memory_already_stays(comfy):
    from speca.comfyui.placement import Placement

    tensor = torch.zeros(3)
    assert Placement(SpeCaConfig(cache_device="auto"))(tensor) is tensor
