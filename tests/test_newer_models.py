"""What the contract suite does not ask of models that came to ComfyUI after the pinned tree, where they are there.

Models that keep state between calls run natively with their own reason; picture and sound, cond and uncond apart.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import contract_models
import newer_models
import tiny_models
from tiny_models import _WAN, Prompt, Spec, TinyModel

pytestmark = pytest.mark.comfy

STEPS = 6
ACCEPT = {"threshold": 1e9, "order": 1, "threshold_end_factor": 1.0, "warmup_steps": 2, "max_consecutive": 100}
HIDREAM_O1 = Spec(
    "HiDreamO1",
    {
        "image_model": "hidream_o1",
        "text_config_overrides": {
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_dims": [4, 2, 2],
        },
        "vision_config_overrides": {
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 32,
            "depth": 1,
            "num_position_embeddings": 16,
        },
    },
    (1, 3, 64, 64),
    Prompt(fixed={"text_input_ids": torch.tensor([[5, 6, 7, 8, 151673]])}),
    cfg=3.0,
)
CAUSAL_WAN = Spec("WAN21_CausalAR_T2V", _WAN, (1, 16, 3, 8, 8))


def built(spec: Spec) -> TinyModel:
    import comfy.supported_models
    import comfyui_version

    if not hasattr(comfy.supported_models, spec.model_class):
        pytest.skip(f"ComfyUI {comfyui_version.__version__} has no {spec.model_class}")
    return contract_models.from_spec(spec)


def run(tiny: TinyModel, sampler: str = "euler", **settings: Any) -> tuple[torch.Tensor, Any]:
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    patcher = attach(tiny.model_patcher, SpeCaConfig(**(ACCEPT | settings)))
    samples = plain(tiny._replace(model_patcher=patcher), sampler)
    return samples, attachment_of(patcher).run_of()


def plain(tiny: TinyModel, sampler: str = "euler") -> torch.Tensor:
    """The KSampler node offers the usual samplers only; any other is reached as SamplerCustom does."""
    import comfy.sample
    import comfy.samplers

    if sampler == "euler":
        return tiny_models.ksample(*tiny, steps=STEPS)
    patcher, latent, positive, negative, cfg = tiny
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    noise = comfy.sample.prepare_noise(latent["samples"], 42)
    named = comfy.samplers.ksampler(sampler)
    return comfy.sample.sample_custom(
        patcher, noise, cfg, named, sigmas, positive, negative, latent["samples"], disable_pbar=True, seed=42
    )


class TestStateBetweenCalls:
    def test_hidream_o1(self, comfy: None) -> None:
        tiny = built(HIDREAM_O1)
        as_it_is = plain(tiny)
        assert torch.isfinite(as_it_is).all()
        samples, record = run(tiny)
        assert record.header.native == (
            "HiDream-O1 keeps keys and values of its prompt from one call to the next; it runs uncached"
        )
        assert torch.equal(samples, as_it_is)

    def test_causal_wan_under_its_own_sampler(self, comfy: None) -> None:
        tiny = built(CAUSAL_WAN)
        as_it_is = plain(tiny, "ar_video")
        assert torch.isfinite(as_it_is).all()
        samples, record = run(tiny, "ar_video")
        assert record.header.native == (
            "this call cannot be cached (the causal Wan keeps keys and values of the frames before); the run is "
            "computed natively"
        )
        assert torch.equal(samples, as_it_is)

    def test_causal_wan_under_another_sampler_is_wan(self, comfy: None) -> None:
        tiny = built(CAUSAL_WAN)
        samples, record = run(tiny, threshold=1e-12)
        assert torch.equal(samples, plain(tiny))
        assert record.header.architecture == "wan"
        assert record.totals.rejected == STEPS - 2
        assert run(tiny)[1].totals.accepted == STEPS - 2


REFERENCE_TOKENS = 16


class KeptReferences:
    """Stands for core's FluxKVCache (comfy_extras/nodes_flux.py, from 0.18): the first call keeps each block's keys and
    values of the reference picture, the last tokens of its row; later calls run without those tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import comfy.ldm.flux.layers as layers

        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.block = 0
        for kind in (layers.DoubleStreamBlock, layers.SingleStreamBlock):
            monkeypatch.setattr(kind, "forward", self.noting(kind.forward))
        monkeypatch.setattr(layers, "attention", self.attention)

    def noting(self, native: Any) -> Any:
        @functools.wraps(native)
        def forward(block: Any, *args: Any, **kwargs: Any) -> Any:
            self.block = id(block)
            return native(block, *args, **kwargs)

        return forward

    def attention(self, q: Any, k: Any, v: Any, pe: Any, mask: Any = None, transformer_options: Any = None) -> Any:
        from comfy.ldm.flux.math import apply_rope
        from comfy.ldm.modules.attention import optimized_attention

        q, k = apply_rope(q, k, pe)
        if self.block in self.kept:
            keys, values = self.kept[self.block]
            k, v = torch.cat([k, keys], 2), torch.cat([v, values], 2)
        else:
            self.kept[self.block] = tuple(t[:, :, -REFERENCE_TOKENS:].clone() for t in (k, v))
        return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, mask=mask)

    def on(self, patcher: Any) -> Any:
        self.kept.clear()

        def without_references(inputs: dict[str, Any]) -> dict[str, Any]:  # a method would be copied with its object
            if self.kept:
                inputs |= {name: inputs[name][:, :-REFERENCE_TOKENS] for name in ("img", "img_ids")}
            return inputs

        patched = patcher.clone()
        patched.set_model_post_input_patch(without_references)
        return patched


def core_cache() -> Any:
    import comfy_extras.nodes_flux as nodes_flux
    import comfyui_version

    if not hasattr(nodes_flux, "FluxKVCache"):
        pytest.skip(f"ComfyUI {comfyui_version.__version__} has no FluxKVCache")
    return nodes_flux.FluxKVCache


class TestFlux2KVCache:
    """FLUX.2 klein with its references' keys and values kept: from the second call on its rows are shorter, so the
    first one is no anchor for them."""

    @pytest.fixture(params=["core", "stand-in"])
    def cached(self, request: pytest.FixtureRequest, comfy: None, monkeypatch: pytest.MonkeyPatch) -> Any:
        """A klein whose references are kept, anew each time that it is asked for. What is kept is of the first step, so
        it makes another picture."""
        tiny = contract_models.build("flux2_edit")
        uncached = plain(tiny)
        stand_in = KeptReferences(monkeypatch) if request.param == "stand-in" else None
        node = core_cache() if stand_in is None else None

        def made() -> TinyModel:
            patcher = tiny.model_patcher
            return tiny._replace(model_patcher=stand_in.on(patcher) if stand_in else node.execute(patcher).args[0])

        assert not torch.equal(plain(made()), uncached)
        return made

    def test_rejecting_everything_is_the_cached_model(self, cached: Any) -> None:
        as_it_is = plain(cached())
        assert torch.isfinite(as_it_is).all()
        samples, record = run(cached(), threshold=1e-12)
        assert torch.equal(samples, as_it_is)
        assert [call.outcome for call in record.calls] == ["full"] * 2 + ["rejected"] * (STEPS - 2)

    def test_its_calls_are_accepted(self, cached: Any) -> None:
        samples, record = run(cached())
        assert torch.isfinite(samples).all()
        assert record.header.native is None
        assert [call.outcome for call in record.calls] == ["full"] * 2 + ["accepted"] * (STEPS - 2)

    def test_with_one_call_computed_first_the_second_is_computed_too(self, cached: Any) -> None:
        """The first one's features have other shapes than what the second one's last block is given."""
        samples, record = run(cached(), warmup_steps=1)
        assert torch.isfinite(samples).all()
        assert record.header.native is None
        assert [(call.outcome, call.rows[0].reason) for call in record.calls[:2]] == [
            ("full", "warm_up"),
            ("full", "shape_changed"),
        ]
        assert record.totals.accepted == STEPS - 2


class TestMiniMaxH3:
    def test_cond_and_uncond_are_calls_of_their_own(self, comfy: None) -> None:
        """The network takes one row a call, so ComfyUI never puts the two together."""
        tiny = built(newer_models.SPECS["minimax_h3"])._replace(cfg=3.0)
        samples, record = run(tiny, threshold=1e-12)
        assert torch.equal(samples, plain(tiny))
        _, record = run(tiny)
        assert {call.conds for call in record.calls} == {(0,), (1,)}
        for cond in ((0,), (1,)):
            of_cond = [call.outcome for call in record.calls if call.conds == cond]
            assert of_cond == ["full"] * 2 + ["accepted"] * (STEPS - 2)

    def test_sound_moves_with_the_picture(self, comfy: None) -> None:
        """Both latents are forecast and verified: accepted calls change both."""
        tiny = built(newer_models.SPECS["minimax_h3"])
        samples, _ = run(tiny)
        shapes = tiny.latent["shapes"]
        ours, theirs = (tiny_models.unpacked(s, shapes).unbind() for s in (samples, plain(tiny)))
        for mine, native in zip(ours, theirs, strict=True):
            assert torch.isfinite(mine).all()
            assert not torch.equal(mine, native)


def test_wan_animate_2_keeps_its_pose_branch(comfy: None) -> None:
    """ComfyUI's node keeps each block's pose input from the first call on. What skipped blocks are given must not be
    what it keeps: a run after a cached one, with the same cache, equals one after an unpatched one."""
    tiny = built(newer_models.SPECS["wan_animate2"])
    import comfy.ldm.wan.model_animate2 as animate2

    def with_cache() -> TinyModel:
        patcher = tiny.model_patcher.clone()
        patcher.model_options.setdefault("transformer_options", {})["animate2_cache"] = animate2.PoseBranchCache()
        return tiny._replace(model_patcher=patcher)

    as_it_is = plain(with_cache())
    cached = with_cache()
    samples, record = run(cached, threshold=1e-12)
    assert record.totals.rejected == STEPS - 2
    assert torch.equal(samples, as_it_is)
    native, cached = with_cache(), with_cache()
    plain(native)
    _, record = run(cached)
    assert record.totals.accepted == STEPS - 2
    assert torch.equal(plain(cached), plain(native))
