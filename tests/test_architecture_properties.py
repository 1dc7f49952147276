"""What an architecture may state beside its blocks, on stand-ins of the block loops of models that the pinned ComfyUI
does not have: tokens without a dimension for samples, blocks called by a method, rows that are mixed, state kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tiny_models
from test_generic import WIDTH, Block, Unknown, model_with

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("endless_patience")]

ACCEPT, REJECT = {"threshold": 1e9, "max_consecutive": 100, "check_every": 1}, {"threshold": 1e-12}


@pytest.fixture
def known(comfy: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`known(network class, **properties)`: SpeCa knows such networks, by an architecture with these properties."""
    from speca import adapters
    from speca.adapters.base import Architecture, BlockList

    def state(network: type[nn.Module], stage: dict[str, Any] | None = None, **properties: Any) -> None:
        stages = (BlockList("blocks", ("hidden",), **(stage or {})),)
        stated = Architecture("standin", "Stand-In", (network.__name__,), stages, **properties)
        monkeypatch.setattr(adapters, "ARCHITECTURES", (stated, *adapters.ARCHITECTURES))

    return state


def run(tiny: Any, patcher: Any = None, **settings: Any) -> tuple[torch.Tensor, Any]:
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    config = SpeCaConfig(**({"order": 1, "warmup_steps": 2, "threshold_end_factor": 1.0} | settings))
    patcher = attach(patcher or tiny.model_patcher, config)
    samples = tiny_models.ksample(patcher, *tiny[1:], steps=6)
    return samples, attachment_of(patcher).run_of()


def plain(tiny: Any, patcher: Any = None) -> torch.Tensor:
    return tiny_models.ksample(patcher or tiny.model_patcher, *tiny[1:], steps=6)


def outcomes(record: Any) -> list[str]:
    return [call.outcome for call in record.calls]


def of_three(tiny: Any) -> Any:
    return tiny._replace(latent={"samples": torch.zeros(3, *tiny.latent["samples"].shape[1:])})


class OneRowOfTokens(Unknown):
    """As MiniMax H3 and SeedVR2: the tokens of all samples are (L, D)."""

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        row = tokens.flatten(0, 1)
        modulation = modulation.expand_as(tokens).flatten(0, 1)
        for block in self.blocks:
            row = block(row, modulation=modulation)
        return row.view_as(tokens)


class TestNoDimensionForSamples:
    def test_a_call_with_one_row_is_cached(self, known: Any) -> None:
        known(OneRowOfTokens, {"batch_dim": None})
        tiny = model_with(OneRowOfTokens())._replace(cfg=1.0)
        samples, record = run(tiny, **REJECT)
        assert torch.equal(samples, plain(tiny))
        assert outcomes(record) == ["full"] * 2 + ["rejected"] * 4
        samples, record = run(tiny, **ACCEPT)
        assert torch.isfinite(samples).all()
        assert outcomes(record) == ["full"] * 2 + ["accepted"] * 4

    def test_a_call_with_more_rows_is_computed(self, known: Any) -> None:
        known(OneRowOfTokens, {"batch_dim": None})
        tiny = model_with(OneRowOfTokens())
        for several in (tiny, of_three(tiny._replace(cfg=1.0))):  # cond and uncond; three samples
            samples, record = run(several, **ACCEPT)
            assert torch.equal(samples, plain(several))
            assert set(outcomes(record)) == {"full"}
            assert {row.reason for call in record.calls[2:] for row in call.rows} == {"no_anchor"}


class TwoBranches(Unknown):
    """As Wan-Animate 2: each block has two methods, and one gets what the other made of another stream."""

    class Block(Block):
        def pose(self, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            TwoBranches.poses += 1
            return other + torch.tanh(self.inner(other)), self.inner(other).mean(dim=1, keepdim=True)

        def generate(self, hidden: torch.Tensor, modulation: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return self.forward(hidden, modulation + key)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the network calls the block's methods only")

    poses = 0

    def __init__(self) -> None:
        super().__init__(self.Block)

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        other = torch.ones(tokens.shape[0], 2, WIDTH)
        for block in self.blocks:
            other, key = block.pose(other)
            tokens = block.generate(tokens, modulation, key)
        return tokens


def test_blocks_that_are_called_by_a_method(known: Any) -> None:
    known(TwoBranches, {"method": "generate"})
    tiny = model_with(TwoBranches())
    samples, record = run(tiny, **REJECT)
    assert torch.equal(samples, plain(tiny))
    assert outcomes(record) == ["full"] * 2 + ["rejected"] * 4
    TwoBranches.poses = 0
    samples, record = run(tiny, **ACCEPT)
    assert outcomes(record) == ["full"] * 2 + ["accepted"] * 4
    assert not torch.equal(samples, plain(tiny))
    blocks = tiny.model_patcher.model.diffusion_model.blocks
    # The other stream ran on all six calls, here and unpatched, and in the pass that tells what is embedded.
    assert TwoBranches.poses == (2 * 6 + 1) * len(blocks)
    assert not any("generate" in vars(block) for block in blocks)


def test_a_method_that_is_not_there_is_named(known: Any) -> None:
    known(Unknown, {"method": "generate"})
    _, record = run(model_with(Unknown()), **ACCEPT)
    assert record.header.experimental  # by its structure instead
    from speca.adapters import NotThisArchitectureError
    from speca.adapters.base import position_of

    with pytest.raises(NotThisArchitectureError, match="Block has no generate"):
        position_of(Block(), "hidden", "generate")


class Mixes(Unknown):
    """As ACE-Step 1.5: every row has a part in what the others get."""

    def run(self, tokens: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        return super().run(tokens + tokens.mean(dim=0, keepdim=True), modulation)


@pytest.mark.parametrize("stated", [True, False])
def test_rows_that_are_mixed_are_never_taken_apart(known: Any, monkeypatch: pytest.MonkeyPatch, stated: bool) -> None:
    """One sample of three is rejected in every call. Recomputed alone it would come out as another picture."""
    import speca.session

    known(Mixes, mixes_rows=stated)
    tiny = of_three(model_with(Mixes()))
    judge = speca.session.judge
    judged = iter(range(10**6))

    def reject_one(error: float, threshold: float, accumulated: float) -> Any:
        return judge(float("inf") if next(judged) % 3 == 1 else error, threshold, accumulated)

    monkeypatch.setattr(speca.session, "judge", reject_one)
    samples, record = run(tiny, **ACCEPT)
    assert torch.equal(samples, plain(tiny)) is stated
    reasons = {row.reason for call in record.calls[2:] for row in call.rows}
    assert ("with_rejected" in reasons) is stated


class TestNative:
    def test_an_architecture_that_keeps_state(self, known: Any) -> None:
        """It says its own reason, and is not looked at by its structure, which here would be trusted."""
        known(Unknown, native="keeps keys and values of its prompt from one call to the next")
        tiny = model_with(Unknown())
        samples, record = run(tiny, **ACCEPT)
        assert record.header.native == (
            "Stand-In keeps keys and values of its prompt from one call to the next; it runs uncached"
        )
        assert torch.equal(samples, plain(tiny))

    def test_a_run_that_keeps_state(self, known: Any) -> None:
        """As the causal Wan under its own sampler; the same network without it is cached."""
        known(Unknown, native_with=(("ar_state", "earlier frames are kept"),))
        tiny = model_with(Unknown())
        patcher = tiny.model_patcher.clone()
        patcher.model_options.setdefault("transformer_options", {})["ar_state"] = {"start_frame": 0}
        samples, record = run(tiny, patcher, **ACCEPT)
        assert record.header.native == (
            "this call cannot be cached (earlier frames are kept); the run is computed natively"
        )
        assert torch.equal(samples, plain(tiny, patcher))
        _, record = run(tiny, **ACCEPT)
        assert record.header.native is None
        assert record.totals.accepted == 4
