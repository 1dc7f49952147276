"""Where anchors go: by the setting, or by what is free when they are about to be kept.

Tensors on the meta device stand for those on a card: they have their real sizes and no memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speca.call import Call
from speca.config import SpeCaConfig
from speca.history import Anchor
from speca.stream import Streams

pytestmark = pytest.mark.comfy

GB = 10**9


def call(stream: int) -> Call:
    return Call(time=1.0, sigma=1.0, step=0, progress=0.0, n_samples=1, streams=(stream,))


class Card:
    """What is free on it besides what the streams hold, and a run that keeps anchors of `features` and `inputs`."""

    def __init__(self, monkeypatch: Any, setting: str, free: float, order: int = 2) -> None:
        import comfy.model_management

        from speca.comfyui.placement import Placement

        def from_card(self: Placement, tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype)  # nothing can be copied from the meta device

        self.free = free
        self.streams = Streams(max(order + 1, 2))
        self.placement = Placement(SpeCaConfig(order=order, cache_device=setting))
        self.placement.follow(self.streams)
        monkeypatch.setattr(Placement, "_to_system_memory", from_card)
        monkeypatch.setattr(
            comfy.model_management, "get_free_memory", lambda device: self.free - self._on_card(), raising=True
        )

    def _on_card(self) -> int:
        return sum(a.nbytes for a in self.anchors if a.features[0].device.type == "meta")

    @property
    def anchors(self) -> list[Anchor]:
        return [a for stream in self.streams._by_key.values() for a in stream.history._anchors]

    @property
    def where(self) -> set[str]:
        tensors = [t for a in self.anchors for t in (*a.features, *a.output)]
        return {"gpu" if t.device.type == "meta" else "cpu" for t in tensors}

    def keep(self, stream: int, time: float, features: torch.Tensor, x: torch.Tensor) -> None:
        kept = self.streams.of(call(stream))[0]
        self.placement.expect([features], [x])
        copy, output = self.placement.copy(features), self.placement(x.clone())
        kept.history.record(Anchor(time, (copy,), (output,)))


def features(nbytes: int) -> torch.Tensor:
    return torch.empty(1, nbytes // 2, dtype=torch.bfloat16, device="meta")


X = torch.empty(1, 100, dtype=torch.bfloat16, device="meta")  # 200 bytes; with its latent in fp32 600
ANCHOR = 10_600


@pytest.mark.parametrize("setting", ["gpu", "cpu"])
def test_a_setting_is_obeyed(comfy: None, monkeypatch: Any, setting: str) -> None:
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "free_memory", lambda *args: [])
    card = Card(monkeypatch, setting, free=0)
    for time in range(3):
        card.keep(0, time, features(10_000), X)
    assert card.where == {setting}


def test_auto_takes_a_quarter_of_what_is_free(comfy: None, monkeypatch: Any) -> None:
    """Three anchors of each stream, from the first that is kept."""
    for spare, where in ((0, "gpu"), (-1, "cpu")):
        card = Card(monkeypatch, "auto", free=4 * 3 * ANCHOR + spare)
        card.keep(0, 0, features(10_000), X)
        assert card.placement.expected_bytes == 3 * ANCHOR
        assert card.where == {where}


def test_what_is_held_does_not_count_as_taken_by_others(comfy: None, monkeypatch: Any) -> None:
    card = Card(monkeypatch, "auto", free=4 * 3 * ANCHOR)
    for time in range(6):
        card.keep(0, time, features(10_000), X)
    assert card.where == {"gpu"}


def test_every_stream_that_is_made_counts_and_one_too_many_moves_all(comfy: None, monkeypatch: Any) -> None:
    card = Card(monkeypatch, "auto", free=4 * 3 * 4 * ANCHOR)
    for stream in range(4):
        card.keep(stream, 0, features(10_000), X)
        assert card.where == {"gpu"}
    card.keep(4, 0, features(10_000), X)
    assert card.where == {"cpu"}
    assert len(card.anchors) == 5


def test_less_free_moves_what_is_held(comfy: None, monkeypatch: Any) -> None:
    card = Card(monkeypatch, "auto", free=4 * 3 * ANCHOR)
    card.keep(0, 0, features(10_000), X)
    assert card.where == {"gpu"}
    card.free /= 2
    card.keep(0, 1, features(10_000), X)
    assert card.where == {"cpu"}
    card.free *= 100  # once moved, it stays
    card.keep(0, 2, features(10_000), X)
    assert card.where == {"cpu"}


def test_larger_features_count_for_all(comfy: None, monkeypatch: Any) -> None:
    card = Card(monkeypatch, "auto", free=1e9)
    card.keep(0, 0, features(10_000), X)
    card.keep(1, 0, features(20_000), X)
    assert card.placement.expected_bytes == 2 * 3 * 20_600


def test_a_stream_has_two_anchors_at_least(comfy: None, monkeypatch: Any) -> None:
    card = Card(monkeypatch, "auto", free=1e9, order=0)
    card.keep(0, 0, features(10_000), X)
    assert card.placement.expected_bytes == 2 * ANCHOR


def test_what_a_person_wants_on_the_card_gets_room_once(comfy: None, monkeypatch: Any) -> None:
    """What is not in use is unloaded by ComfyUI itself; what is, stays."""
    from types import SimpleNamespace

    import comfy.model_management

    idle, busy = SimpleNamespace(currently_used=False), SimpleNamespace(currently_used=True)
    asked = []
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [idle, busy])
    monkeypatch.setattr(comfy.model_management, "free_memory", lambda *args: asked.append(args))
    card = Card(monkeypatch, "gpu", free=0)
    for time in range(3):
        card.keep(0, time, features(10_000), X)
    ((wanted, device, kept),) = asked
    assert wanted >= 3 * ANCHOR
    assert device.type == "meta"
    assert kept == [busy]


def test_what_is_in_system_memory_is_copied_there(comfy: None) -> None:
    from speca.comfyui.placement import Placement

    for setting in ("auto", "gpu", "cpu"):
        placement, tensor = Placement(SpeCaConfig(cache_device=setting)), torch.zeros(3)
        placement.expect([tensor[None]], [tensor[None]])
        assert placement(tensor) is tensor
        copy = placement.copy(tensor)
        tensor += 1
        assert copy.tolist() == [0, 0, 0]
        placement.settle()
        placement.release()


def test_where_nothing_can_be_kept_the_picture_comes_out_all_the_same(comfy: None, monkeypatch: Any) -> None:
    import tiny_models
    from speca.comfyui.attach import attach, attachment_of
    from speca.comfyui.placement import Placement

    def broken(*args: Any) -> Any:
        raise ValueError("no place")

    tiny = tiny_models.build("flux")
    plain = tiny_models.ksample(*tiny, steps=6)
    monkeypatch.setattr(Placement, "expect", broken)
    model = attach(tiny.model_patcher, SpeCaConfig(threshold=1e9))
    assert torch.equal(tiny_models.ksample(model, *tiny[1:], steps=6), plain)
    assert "no place" in attachment_of(model).run_of().header.native


@pytest.fixture(scope="module")
def wan_720p(comfy: None) -> Any:
    """Wan 2.1 14B at its real width, two of its forty blocks, on 81 frames of 1280x720: (network, inputs)."""
    import comfy.ops
    from comfy.ldm.wan.model import WanModel

    network = WanModel(
        model_type="t2v",
        in_dim=16,
        dim=5120,
        ffn_dim=13824,
        freq_dim=256,
        text_dim=4096,
        out_dim=16,
        num_heads=40,
        num_layers=2,
        device="meta",
        dtype=torch.bfloat16,
        operations=comfy.ops.disable_weight_init,
    )
    x = torch.empty(1, 16, 21, 90, 160, device="meta", dtype=torch.bfloat16)
    context = torch.empty(1, 512, 4096, device="meta", dtype=torch.bfloat16)
    return network, (x, torch.empty(1, device="meta"), context)


# A card's GB, and those that are free in the middle of a call: of 12 next to none, since ComfyUI loads as many weights
# as fit beside the network's own need; of 24 what weights in fp8 (14.3) and that need (6) leave; of 80 those in bf16.
CARDS = [(12, 1.0, "cpu"), (24, 3.7, "cpu"), (80, 45.0, "gpu"), ("just enough", 19.28, "gpu"), ("less", 19.27, "cpu")]


@pytest.mark.parametrize(("card_gb", "free_gb", "where"), CARDS)
def test_wan_at_720p(wan_720p: Any, monkeypatch: Any, card_gb: Any, free_gb: float, where: str) -> None:
    """75,600 tokens of 5,120 in bf16, an output in bf16 and a latent in fp32: 803 MB an anchor, three of them for each
    of two conditionings."""
    from speca.adapters import recognise
    from speca.comfyui.compiled import Forwards
    from speca.comfyui.network import BoundNetwork

    network, args = wan_720p
    card = Card(monkeypatch, "auto", free=free_gb * GB)
    with torch.inference_mode():
        for time in range(3):
            for stream in (0, 1):
                kept = card.streams.of(call(stream))[0]
                options = {"transformer_options": {}}
                bound = BoundNetwork(
                    recognise(network),
                    Forwards.of(network),
                    args,
                    options,
                    1,
                    False,
                    placement=card.placement,
                )
                exact = bound.full(None, True)
                assert exact.features is not None
                kept.history.record(Anchor(time, exact.features, tuple(map(card.placement, exact.output))))
    assert card.where == {where}
    features_bytes = 75_600 * 5120 * 2
    assert [a.features[0].nbytes for a in card.anchors] == [features_bytes] * 6
    latent = 16 * 21 * 90 * 160
    assert card.placement.expected_bytes == 6 * (features_bytes + latent * 2 + latent * 4) == 4_819_046_400
    print(f"{card_gb}: {card.placement.expected_bytes / GB:.2f} GB to keep, {free_gb} GB free: {where}")
