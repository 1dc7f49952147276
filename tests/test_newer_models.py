"""What the contract suite does not ask of models that came to ComfyUI after the pinned tree, where they are there.

Models that keep state between calls run natively with their own reason; picture and sound, cond and uncond apart.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import contract_models
import newer_models
import speca.session
import test_architecture_properties
import test_generic
import tiny_models
from tiny_models import _WAN, Prompt, Spec, TinyModel

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("endless_patience")]

STEPS = 6
ACCEPT = {
    "threshold": 1e9,
    "order": 1,
    "threshold_end_factor": 1.0,
    "warmup_steps": 2,
    "max_consecutive": 100,
    "check_every": 1,
}
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


class QwenImage21Transformer2DModel(nn.Module):
    """Stands for the network of this name (comfy/ldm/qwen_image21/model.py, from 0.37): a prompt's keys and values are
    kept from its first call on, which runs each block on the prompt and then on the picture. Later calls run the
    picture's tokens alone. `fills` counts the first ones; `forget_at` is a call before which all is dropped."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Any, mod: Any, pe: Any, attn_fn: Any, prefix_len: int, transformer_options: Any) -> Any:
            of_text, of_picture = mod[0].expand(len(x), prefix_len, -1), mod[1].expand(-1, x.shape[1] - prefix_len, -1)
            scale = torch.cat([of_text, of_picture], 1)
            x.add_(torch.tanh(self.out(attn_fn(*self.qkv(x * (1 + scale)).chunk(3, -1)))))
            return x

    def __init__(self) -> None:
        super().__init__()
        self.dtype = torch.float32
        self.txt_in, self.img_in, self.proj_out = nn.LazyLinear(16), nn.Linear(4, 16), nn.Linear(16, 4)
        self.transformer_blocks = nn.ModuleList(self.Block() for _ in range(4))
        self.reset()

    def reset(self, forget_at: int | None = None) -> None:
        """What core does before a run."""
        self.kept: list[tuple[torch.Tensor, dict[int, Any]]] = []
        self.calls = self.fills = 0
        self.forget_at = forget_at

    def slot(self, context: torch.Tensor) -> dict[int, Any]:
        """By the prompts of all rows."""
        self.calls += 1
        if self.calls - 1 == self.forget_at:
            self.kept.clear()
        for key, slot in self.kept:
            if key.shape == context.shape and torch.equal(key, context):
                return slot
        self.kept.append((context.clone(), {}))
        return self.kept[-1][1]

    def forward(self, x: Any, timestep: Any, context: Any = None, transformer_options: Any = None, **_: Any) -> Any:
        text, picture = self.txt_in(context), self.img_in(x.flatten(2).transpose(1, 2))
        mod = torch.zeros(1, 1, 16), torch.sin(3 * timestep)[:, None, None] * torch.ones(1, 1, 16)
        slot = self.slot(context)
        cached = len(slot) == len(self.transformer_blocks)
        self.fills += not cached

        def of_text(i: int) -> Any:
            def attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                slot[i] = k, v
                return nn.functional.scaled_dot_product_attention(q, k, v)

            return attn

        def of_picture(i: int) -> Any:
            keys, values = slot[i]

            def attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                k, v = torch.cat([keys, k], 1), torch.cat([values, v], 1)
                return nn.functional.scaled_dot_product_attention(q, k, v)

            return attn

        for i, block in enumerate(self.transformer_blocks):
            if not cached:
                text = block(text, mod, None, of_text(i), text.shape[1], transformer_options)
            picture = block(picture, mod, None, of_picture(i), 0, transformer_options)
        return self.proj_out(picture).transpose(1, 2).view_as(x)


class TestQwenImage21:
    @pytest.fixture
    def tiny(self, comfy: None) -> TinyModel:
        network = QwenImage21Transformer2DModel()
        network.txt_in(torch.zeros(1, 1, tiny_models.WIDTH))
        tiny = test_generic.model_with(network)
        assert tiny.latent["samples"].shape[1] == 4
        return tiny

    def network(self, tiny: TinyModel) -> Any:
        return tiny.model_patcher.model.diffusion_model

    def test_rejecting_everything_is_the_unpatched_model(self, tiny: TinyModel) -> None:
        as_it_is = plain(tiny)
        assert self.network(tiny).fills == 1
        self.network(tiny).reset()
        samples, record = run(tiny, threshold=1e-12)
        assert torch.equal(samples, as_it_is)
        assert record.header.architecture == "qwen_image21"
        assert [call.outcome for call in record.calls] == ["full"] * 2 + ["rejected"] * (STEPS - 2)

    def test_its_prefix_is_computed_once(self, tiny: TinyModel) -> None:
        as_it_is = plain(tiny)
        self.network(tiny).reset()
        samples, record = run(tiny)
        assert torch.isfinite(samples).all()
        assert not torch.equal(samples, as_it_is)
        assert [call.outcome for call in record.calls] == ["full"] * 2 + ["accepted"] * (STEPS - 2)
        assert self.network(tiny).fills == 1

    def test_the_first_call_is_no_anchor(self, tiny: TinyModel) -> None:
        _, record = run(tiny, warmup_steps=1)
        assert [(call.outcome, call.rows[0].reason) for call in record.calls[:2]] == [
            ("full", "warm_up"),
            ("full", "no_anchor"),
        ]
        assert record.totals.accepted == STEPS - 2

    def test_its_rows_are_never_taken_apart(self, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
        """Some rows of a call would find no prefix of their own."""
        tiny = test_architecture_properties.of_three(tiny)
        as_it_is = plain(tiny)
        self.network(tiny).reset()
        judge = speca.session.judge
        judged = iter(range(10**6))

        def reject_one(error: float, threshold: float, accumulated: float) -> Any:
            return judge(float("inf") if next(judged) % 3 == 1 else error, threshold, accumulated)

        monkeypatch.setattr(speca.session, "judge", reject_one)
        samples, record = run(tiny)
        assert torch.equal(samples, as_it_is)
        assert {row.reason for call in record.calls[2:] for row in call.rows} == {"not_finite", "with_rejected"}
        assert self.network(tiny).fills == 1

    def test_what_was_dropped_in_mid_run_is_computed_anew(self, tiny: TinyModel) -> None:
        """Where memory runs short. A call without blocks can keep nothing: it is computed."""
        as_it_is = plain(tiny)
        self.network(tiny).reset(forget_at=5)  # a speculated one: each of those is followed by a computed one
        samples, record = run(tiny, threshold=1e-12)
        assert torch.equal(samples, as_it_is)
        assert record.header.native is None
        assert record.totals.rejected > 0
        assert self.network(tiny).fills > 1


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

    def test_both_errors_are_reported_and_the_worse_decides(self, comfy: None) -> None:
        from speca.events import CallRecord

        tiny = built(newer_models.SPECS["minimax_h3"])
        _, record = run(tiny)
        checked = [call for call in record.calls if call.rows[0].error is not None]
        assert len(checked) == STEPS - 2
        for call in checked:
            (row,) = call.rows
            picture, sound = row.tensors
            assert picture != sound
            assert row.error == max(picture, sound)
        told = CallRecord.to_json(checked[0])["rows"][0]
        assert told["tensors"] == [pytest.approx(error, rel=1e-3) for error in checked[0].rows[0].tensors]
        # At a threshold between the two of the first check the better one alone would have passed.
        _, record = run(tiny, threshold=sum(checked[0].rows[0].tensors) / 2)
        assert record.calls[checked[0].call].outcome == "rejected"

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
