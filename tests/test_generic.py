"""Networks that no adapter names: which are proposed, which pass the trial; and the picture is right either way."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiny_models

pytestmark = pytest.mark.comfy

WIDTH, DEPTH = 16, 6


class Block(nn.Module):
    """A residual step that needs the timestep; works in place when asked to, as many do."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.in_place = in_place

    def forward(self, hidden: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        step = torch.tanh(self.inner(hidden + modulation))
        if self.in_place:
            hidden += step
            return hidden
        return hidden + step


class Unknown(nn.Module):
    """A transformer that no adapter names. Subclasses change how its blocks are run."""

    def __init__(self, block: Callable[[], nn.Module] = Block, depth: int = DEPTH) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: Any = None, **_: Any) -> torch.Tensor:
        modulation = torch.sin(timestep)[:, None, None] * torch.ones(1, 1, WIDTH)
        if context is not None:
            modulation = modulation + context.mean()
        tokens = self.embed(x.flatten(2).transpose(1, 2))
        tokens = self.run(tokens, modulation)
        return self.head(tokens).transpose(1, 2).view_as(x)

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens, modulation=modulation)
        return tokens


class InPlace(Unknown):
    def __init__(self) -> None:
        super().__init__(lambda: Block(in_place=True))


class TwoLists(Unknown):
    """Pairs first, then both joined."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, one: torch.Tensor, two: torch.Tensor, modulation: torch.Tensor) -> Any:
            # Returned in the other order than they are taken.
            return two + torch.tanh(self.other(one + modulation)), one + torch.tanh(self.inner(two))

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(self.Pair() for _ in range(3))

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        one, two = tokens, tokens.flip(1)
        for pair in self.pairs:
            two, one = pair(one, two, modulation)
        joined = super().run(torch.cat([one, two], dim=1), modulation)
        return joined[:, : tokens.shape[1]]


class LongSkip(Unknown):
    """The last block's modulation hangs on the first block's output."""

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        first = None
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, modulation if i < DEPTH - 1 else modulation + first)
            first = tokens.clone() if first is None else first
        return tokens


class ReadsAnEarlyBlock(Unknown):
    """The head gets what the second block made, too."""

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        early = 0.0
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, modulation)
            early = tokens.clone() if i == 1 else early
        return tokens + early


class Crops(Unknown):
    """What a block gets is not what the one before it returned."""

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens, modulation) * 0.9
        return tokens


class RunsTwice(Unknown):
    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        return super().run(super().run(tokens, modulation), modulation)


class Reversed(Unknown):
    """Runs its blocks from the last to the first."""

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        for block in reversed(self.blocks):
            tokens = block(tokens, modulation)
        return tokens


class Random(Unknown):
    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        return super().run(tokens, modulation) + torch.randn(tokens.shape)


class MixesRows(Unknown):
    """Samples stand in the second dimension of the tokens."""

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        return super().run(tokens.transpose(0, 1), modulation.transpose(0, 1)).transpose(0, 1)


class FewBlocks(Unknown):
    def __init__(self) -> None:
        super().__init__(depth=3)


class Unequal(Unknown):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[2].inner = nn.Linear(WIDTH, WIDTH, bias=False)


class MostlyElsewhere(Unknown):
    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(100, 100)


TRUSTED = (Unknown, InPlace, TwoLists, Reversed)
DISTRUSTED = {
    LongSkip: "its output depends on more than what its last block receives",
    ReadsAnEarlyBlock: "its output depends on more than what its last block receives",
    Crops: "a block does not receive just what the one before it returned",
    RunsTwice: "not every block runs exactly once",
    Random: "two equal calls give different outputs",
    MixesRows: "what its blocks carry has no row for each sample",
}
NOT_PROPOSED = (FewBlocks, Unequal, MostlyElsewhere)


def model_with(network: nn.Module) -> tiny_models.TinyModel:
    """A genuine ComfyUI model around `network`."""
    tiny = tiny_models.build("auraflow")
    tiny_models.randomise(network)
    tiny.model_patcher.model.diffusion_model = network.eval().requires_grad_(False)
    return tiny


def run(tiny: tiny_models.TinyModel, **settings: Any) -> tuple[torch.Tensor, Any]:
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    patcher = attach(tiny.model_patcher, SpeCaConfig(**({"order": 1, "accumulate_error": False} | settings)))
    samples = tiny_models.ksample(patcher, *tiny[1:], steps=8)
    return samples, attachment_of(patcher).run_of()


@pytest.mark.parametrize("network", TRUSTED, ids=lambda network: network.__name__)
class TestTrusted:
    def test_speculates(self, comfy: None, network: type[nn.Module]) -> None:
        samples, record = run(model_with(network()), threshold=1e9)
        assert record.header.native is None
        assert record.header.experimental
        assert record.header.architecture == "generic"
        assert record.totals.accepted > 0
        assert torch.isfinite(samples).all()

    def test_rejecting_everything_is_the_unpatched_model(self, comfy: None, network: type[nn.Module]) -> None:
        tiny = model_with(network())
        samples, record = run(tiny, threshold=1e-12)
        assert record.totals.rejected == 7
        assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))


@pytest.mark.parametrize("network", DISTRUSTED, ids=lambda network: network.__name__)
def test_distrusted(comfy: None, network: type[nn.Module], caplog: pytest.LogCaptureFixture) -> None:
    tiny = model_with(network())
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        samples, record = run(tiny, threshold=1e9)
    assert DISTRUSTED[network] in record.header.native
    assert record.totals.accepted == 0
    sentences = [r.message for r in caplog.records if DISTRUSTED[network] in r.message]
    assert len(sentences) == 1
    if network is not Random:
        assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))


@pytest.mark.parametrize("network", NOT_PROPOSED, ids=lambda network: network.__name__)
def test_not_proposed(comfy: None, network: type[nn.Module]) -> None:
    tiny = model_with(network())
    samples, record = run(tiny, threshold=1e9)
    assert record.header.native == (
        f"SpeCa has no adapter for {network.__name__}, and its structure is not that of a transformer with equal "
        "blocks; it runs uncached"
    )
    assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))


def test_the_trial_is_held_once_for_each_network(comfy: None) -> None:
    calls = []

    class Counting(Unknown):
        def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
            calls.append(len(tokens))
            return super().run(tokens, modulation)

    tiny = model_with(Counting())
    for expected in (8 + 3, 8):  # the trial: watched, in full, and without the blocks
        calls.clear()
        run(tiny, threshold=1e9)
        assert len(calls) == expected
    calls.clear()
    run(model_with(Counting()), threshold=0.0)
    assert len(calls) == 8  # nothing will be skipped, so nothing is tried


def test_a_network_that_writes_to_its_input_is_tried_out_on_a_copy(comfy: None) -> None:
    class Writes(Unknown):
        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            x += 1.0
            return super().forward(x, *args, **kwargs)

    tiny = model_with(Writes())
    samples, _ = run(tiny, threshold=1e9, max_consecutive=1, start_percent=0.99)
    assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))


def test_nothing_keeps_a_network_alive(comfy: None) -> None:
    tiny = model_with(Unknown())
    run(tiny, threshold=1e9)
    network = weakref.ref(tiny.model_patcher.model.diffusion_model)
    del tiny
    gc.collect()
    assert network() is None


@pytest.mark.parametrize("name", sorted(tiny_models.UNETS))
def test_unets_stay_native(comfy: None, name: str) -> None:
    tiny = tiny_models.build(name)
    samples, record = run(tiny, threshold=1e9)
    assert "SpeCa has no adapter for UNetModel" in record.header.native
    assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))


@pytest.mark.parametrize("of_sdxl", [True, False], ids=["sdxl", "sd15"])
def test_unets_of_the_real_size_are_not_proposed(comfy: None, of_sdxl: bool) -> None:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from speca.adapters import NotThisArchitectureError, recognise

    sdxl = {"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10]}
    sdxl |= {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10}
    sd15 = {"num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0]}
    sd15 |= {"transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1}
    network = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=of_sdxl,
        context_dim=2048 if of_sdxl else 768,
        device="meta",
        operations=comfy.ops.disable_weight_init,
        **(sdxl if of_sdxl else sd15),
    )
    with pytest.raises(NotThisArchitectureError, match="not that of a transformer"):
        recognise(network)


@pytest.mark.parametrize("name", ["flux", "wan21", "qwen_image", "ltxv", "lumina2"])
def test_a_known_network_under_another_name_is_found_by_its_structure(comfy: None, name: str) -> None:
    """Four more blocks each, since the tiny ones have too few to be taken for a transformer by structure alone."""
    more = {
        "flux": {"depth": 4, "depth_single_blocks": 4},
        "wan21": {"num_layers": 8},
        "qwen_image": {"num_layers": 6},
        "ltxv": {"num_layers": 8},
        "lumina2": {"n_layers": 8},
    }
    tiny = tiny_models.build(name, **more[name])
    network = tiny.model_patcher.model.diffusion_model
    network.__class__ = _disguised(type(network))
    _, record = run(tiny, threshold=1e9)
    assert record.header.native is None
    assert record.header.architecture == "generic"
    assert record.totals.accepted > 0
    rejected, record = run(tiny, threshold=1e-12)
    assert record.totals.rejected == 7
    assert torch.equal(rejected, tiny_models.ksample(*tiny, steps=8))


def _disguised(cls: type[nn.Module]) -> type[nn.Module]:
    """The class with all it has, under names that no adapter knows."""
    namespace: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(nn.Module)]):
        namespace |= {k: v for k, v in vars(base).items() if k not in ("__dict__", "__weakref__", "__init__")}
    return type("SomethingNew", (nn.Module,), namespace)
