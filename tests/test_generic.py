"""Networks that no adapter names: which are proposed, which pass the trial; and the picture is right either way."""

from __future__ import annotations

import copy
import functools
import gc
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tiny_models

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("endless_patience")]

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


class ByAnotherName(Unknown):
    """Its blocks have a forward, which it does not call."""

    class Block(Block):
        def forward_gen(self, hidden: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
            return self.scaled(super().forward(hidden, modulation))

        def scaled(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * 1.0

    def __init__(self) -> None:
        super().__init__(self.Block)

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            tokens = block.forward_gen(tokens, modulation)
        return tokens


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
    ByAnotherName: "its blocks are called by forward_gen, not by forward",
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

    patcher = attach(
        tiny.model_patcher, SpeCaConfig(**({"order": 1, "accumulate_error": False, "check_every": 1} | settings))
    )
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


@pytest.fixture
def counting() -> type[Unknown]:
    """A class of networks that nobody has seen, and that counts its calls."""

    class Counting(Unknown):
        def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
            calls.append(len(tokens))
            return self.through(tokens, modulation)

        def through(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
            return super().run(tokens, modulation)

    calls: list[int] = []
    Counting.calls = calls
    return Counting


TRIAL = 3  # calls: watched, in full, and without the blocks
RUN = 8 + 1  # eight steps, and a call without the blocks that tells what is embedded


class TestOneTrial:
    """Of all networks of one class and structure, as long as they are called in one way."""

    def calls(self, tiny: tiny_models.TinyModel, counting: type[Unknown], **settings: Any) -> tuple[int, Any]:
        counting.calls.clear()
        _, record = run(tiny, **({"threshold": 1e9} | settings))
        return len(counting.calls), record

    def test_serves_the_next_run_and_the_next_network(self, comfy: None, counting: type[Unknown]) -> None:
        tiny = model_with(counting())
        assert self.calls(tiny, counting)[0] == RUN + TRIAL
        assert self.calls(tiny, counting)[0] == RUN
        calls, record = self.calls(model_with(counting()), counting)
        assert calls == RUN
        assert record.totals.accepted > 0

    def test_is_not_held_where_nothing_will_be_skipped(self, comfy: None, counting: type[Unknown]) -> None:
        assert self.calls(model_with(counting()), counting, threshold=0.0)[0] == 8

    def test_that_failed_is_not_held_again_either(self, comfy: None, counting: type[Unknown]) -> None:
        counting.through = ReadsAnEarlyBlock.run
        first, record = self.calls(model_with(counting()), counting)
        reason = DISTRUSTED[ReadsAnEarlyBlock]
        assert first == 8 + TRIAL
        assert reason in record.header.native
        again, record = self.calls(model_with(counting()), counting)
        assert again == 8
        assert reason in record.header.native

    @pytest.mark.parametrize(
        "change",
        [
            lambda network: setattr(network, "blocks", network.blocks[:-1]),
            lambda network: setattr(network, "long_skip", True),
            lambda network: setattr(network.blocks[2], "kind", "other"),
            lambda network: setattr(network, "head", nn.Sequential(nn.Linear(WIDTH, 4), nn.Identity())),
            lambda network: setattr(network.blocks[3], "forward", functools.partial(Block.forward, network.blocks[3])),
            lambda network: [block.register_buffer("kept", torch.zeros(2)) for block in network.blocks],
        ],
        ids=["depth", "flag", "flag of a block", "another module", "another pack's forward", "buffer"],
    )
    def test_does_not_speak_for_another_structure(
        self, comfy: None, counting: type[Unknown], change: Callable[[nn.Module], Any]
    ) -> None:
        self.calls(model_with(counting()), counting)
        network = counting()
        change(network)
        tiny = model_with(network)
        assert self.calls(tiny, counting)[0] == RUN + TRIAL
        assert self.calls(tiny, counting)[0] == RUN

    def test_does_not_speak_for_calls_with_a_patch(self, comfy: None, counting: type[Unknown]) -> None:
        """What another pack put into one run must not decide for those without it."""
        tiny = model_with(counting())
        patched = tiny._replace(model_patcher=tiny.model_patcher.clone())
        patched.model_patcher.set_model_patch(lambda *args: args, "double_block")
        assert self.calls(patched, counting)[0] == RUN + TRIAL
        assert self.calls(tiny, counting)[0] == RUN + TRIAL
        assert self.calls(patched, counting)[0] == RUN

    def test_finds_the_blocks_that_are_there_now(self, comfy: None, counting: type[Unknown]) -> None:
        tiny = model_with(counting())
        self.calls(tiny, counting)
        network = tiny.model_patcher.model.diffusion_model
        network.blocks = copy.deepcopy(network.blocks)
        calls, record = self.calls(tiny, counting)
        assert calls == RUN
        assert record.totals.accepted > 0

    def test_a_number_that_changes_is_no_structure(self, comfy: None, counting: type[Unknown]) -> None:
        """A network may count its calls."""
        tiny = model_with(counting())
        self.calls(tiny, counting)
        tiny.model_patcher.model.diffusion_model.step = 5
        assert self.calls(tiny, counting)[0] == RUN


@pytest.mark.parametrize("network", [Unknown, Reversed], ids=["forwards", "backwards"])
def test_compiled_blocks_of_an_unknown_network_speculate(comfy: None, network: type[nn.Module]) -> None:
    tiny = model_with(network())
    blocks = tiny.model_patcher.model.diffusion_model.blocks
    for i, block in enumerate(list(blocks)):
        blocks[i] = torch.compile(block, backend="eager")
    samples, record = run(tiny, threshold=1e-12)
    assert record.header.native is None
    assert record.totals.rejected == 7
    assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))
    _, record = run(tiny, threshold=1e9)
    assert record.totals.accepted > 0


def test_a_network_that_writes_to_its_input_is_tried_out_on_a_copy(comfy: None) -> None:
    class Writes(Unknown):
        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            x += 1.0
            return super().forward(x, *args, **kwargs)

    tiny = model_with(Writes())
    samples, _ = run(tiny, threshold=1e9, max_consecutive=1, start_percent=0.99)
    assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))


def test_nothing_keeps_a_network_alive(comfy: None) -> None:
    class OfItsOwn(Unknown):
        pass

    tiny = model_with(OfItsOwn())
    _, record = run(tiny, threshold=1e9)
    assert record.totals.accepted > 0
    network, cls = weakref.ref(tiny.model_patcher.model.diffusion_model), weakref.ref(OfItsOwn)
    block = weakref.ref(network().blocks[0])
    del tiny, OfItsOwn, record
    gc.collect()
    assert network() is None
    assert block() is None
    assert cls() is None


class TestTheReasonIsTheTrueOne:
    """Of an adapter's class that came out otherwise than the adapter says."""

    def test_blocks_are_called_by_another_method(self, comfy: None) -> None:
        tiny = tiny_models.build("wan21")
        network = tiny.model_patcher.model.diffusion_model
        block = type(network.blocks[0])

        class Block(block):
            def forward_gen(self, *args: Any, **kwargs: Any) -> torch.Tensor:
                return block.forward(self, *args, **kwargs)

            def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
                return self.forward_gen(*args, **kwargs)

        Block.__module__ = block.__module__  # a later core's
        for one in network.blocks:
            one.__class__ = Block
        samples, record = run(tiny, threshold=1e9)
        assert record.header.native == "Wan's blocks are called by forward_gen, not by forward; it runs uncached"
        assert torch.equal(samples, tiny_models.ksample(*tiny, steps=8))

    def test_the_list_of_blocks_has_another_name(self, comfy: None) -> None:
        import comfyui_version

        tiny = tiny_models.build("auraflow")
        network = tiny.model_patcher.model.diffusion_model
        network.__class__ = type("Flux", (type(network),), {})
        _, record = run(tiny, threshold=1e9)
        assert record.header.native == (
            f"SpeCa knows FLUX, but in ComfyUI {comfyui_version.__version__} Flux has fewer than two blocks in "
            "double_blocks and single_blocks, and its structure is not that of a transformer with equal blocks; "
            "it runs uncached"
        )

    def test_a_known_class_is_not_called_unknown_when_its_trial_fails(self, comfy: None) -> None:
        network = ReadsAnEarlyBlock()
        network.__class__ = type("Flux", (ReadsAnEarlyBlock,), {})
        _, record = run(model_with(network), threshold=1e9)
        assert record.header.native.startswith("SpeCa knows FLUX, but in ComfyUI ")
        assert f"its blocks cannot be skipped safely: {DISTRUSTED[ReadsAnEarlyBlock]}" in record.header.native


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
