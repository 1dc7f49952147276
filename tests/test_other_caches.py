"""Another cache on the same model, by each mechanism there is: recognised by what it does, said, and left alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

import tiny_models

pytestmark = pytest.mark.comfy

STEPS = 12
ACCEPT = {"threshold": 1e9, "max_consecutive": 100, "check_every": 1}
REJECT = {"threshold": 1e-12}


@pytest.fixture(scope="module")
def tiny(comfy: None) -> Any:
    return tiny_models.build("flux")


def run(tiny: Any, model: Any, settings: dict[str, Any] | None = None, cfg: float = 1.0) -> tuple[torch.Tensor, Any]:
    """(samples, the run's record); without settings, without SpeCa"""
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    if settings is not None:
        model = attach(model, SpeCaConfig(**settings))
    samples = tiny_models.ksample(model, *tiny[1:4], cfg, steps=STEPS)
    return samples, attachment_of(model).run_of(samples) if settings is not None else None


Cache = Callable[[Any, Any], tuple[Any, AbstractContextManager[None]]]
"""(model, store) -> the model with the cache, and what must be open while it runs"""


def wrapper(kind: str) -> Cache:
    def on(model: Any, store: Any) -> Any:
        import stand_ins

        return stand_ins.cache_in_wrapper(model, store, kind), nullcontext()

    return on


def made_by(name: str, *options: str) -> Cache:
    def on(model: Any, store: Any) -> Any:
        import stand_ins

        return getattr(stand_ins, name)(model, store, *options), nullcontext()

    return on


def opened_by(name: str, *options: str) -> Cache:
    def on(model: Any, store: Any) -> Any:
        import stand_ins

        network = model.model.diffusion_model
        what = type(network) if name == "cache_in_class" else network
        return model, getattr(stand_ins, name)(what, store, *options)

    return on


def fed_by_a_hook(model: Any, store: Any) -> Any:
    import stand_ins

    hooked = stand_ins.hook_at_head(model.model.diffusion_model)
    return stand_ins.cache_in_function_wrapper(model, store), hooked


# What the sentence must name. Those that can be seen before anything is forecast leave no call to SpeCa.
AT_ONCE: dict[str, tuple[Cache, str]] = {
    "forward": (made_by("cache_in_forward"), "stored_forward"),
    "forward_orig": (made_by("cache_in_forward", "forward_orig"), "stored_forward"),
    "block_list": (made_by("cache_in_block_list"), "CachedBlocks"),
    "blocks": (opened_by("exchanged_in_blocks"), "kept_forward"),
    "part_of_blocks": (opened_by("exchanged_in_blocks", "norm"), "kept_forward"),
    "patches_and_wrapper": (made_by("cache_in_patches", "predict_noise"), "kept_block"),
    "hook_and_wrapper": (fed_by_a_hook, "kept_feature"),
}
BY_COUNT: dict[str, tuple[Cache, str]] = {
    "class": (opened_by("cache_in_class"), "0 of 5 blocks"),
    "diffusion_model": (wrapper("diffusion_model"), "some_cache"),
    "patches_replace": (made_by("cache_in_patches"), "kept_block"),
}
AROUND: dict[str, tuple[Cache, str]] = {
    "function_wrapper": (made_by("cache_in_function_wrapper"), "kept_model_output"),
    "apply_model": (wrapper("apply_model"), "some_cache"),
    "predict_noise": (wrapper("predict_noise"), "some_cache"),
}


@pytest.fixture
def with_cache(tiny: Any) -> Callable[..., Any]:
    """f(cache, near, settings) -> (samples, record, store)"""
    import stand_ins

    def made(cache: Cache, near: float, settings: dict[str, Any] | None) -> Any:
        store = stand_ins.Store(near)
        model, opened = cache(tiny.model_patcher, store)
        with opened:
            samples, record = run(tiny, model, settings)
        return samples, record, store

    return made


NEAR = 0.5


@pytest.mark.parametrize("name", AT_ONCE)
def test_what_stands_in_the_way_is_seen_before_anything_is_forecast(with_cache: Any, name: str) -> None:
    cache, named = AT_ONCE[name]
    alone, _, store = with_cache(cache, NEAR, None)
    assert store.reused > 0  # it is a cache at all
    samples, record, _ = with_cache(cache, NEAR, ACCEPT)
    assert named in record.header.native
    assert record.calls == ()
    assert torch.equal(samples, alone)


@pytest.mark.parametrize("name", BY_COUNT)
def test_blocks_that_do_not_run_are_counted(tiny: Any, with_cache: Any, name: str) -> None:
    """Every forecast is rejected: the call is computed in full all the same, past the cache, which has seen its draft;
    the rest is left to the cache."""
    cache, named = BY_COUNT[name]
    _, record, store = with_cache(cache, NEAR, REJECT)
    assert store.reused > 0
    assert named in record.header.native
    assert "blocks ran" in record.header.native
    n_calls = len(record.calls)
    assert n_calls < STEPS
    assert record.totals.accepted == 0


@pytest.mark.parametrize("name", BY_COUNT)
def test_without_a_forecast_the_picture_is_the_other_caches(with_cache: Any, name: str) -> None:
    cache, named = BY_COUNT[name]
    alone, _, store = with_cache(cache, NEAR, None)
    assert store.reused > 0
    samples, record, _ = with_cache(cache, NEAR, {"threshold": 0.0})
    assert torch.equal(samples, alone)
    assert named in record.header.native


def test_a_rejected_draft_does_not_come_back_from_another_cache(tiny: Any, with_cache: Any) -> None:
    """In the full call it sees the input that it has just seen in the draft's."""
    from speca.comfyui.network import BoundNetwork

    native, seen = BoundNetwork.past_others, []

    def past_others(self: Any, missing: Any) -> Any:
        seen.append(self)
        return native(self, missing)

    plain, _ = run(tiny, tiny.model_patcher)
    BoundNetwork.past_others = past_others  # type: ignore[method-assign]
    try:
        # So near that it answers only for the very same input.
        samples, record, _ = with_cache(BY_COUNT["diffusion_model"][0], 1e-6, REJECT)
    finally:
        BoundNetwork.past_others = native  # type: ignore[method-assign]
    assert len(seen) == 1
    assert record.header.native is not None
    assert torch.equal(samples, plain)


@pytest.mark.parametrize("name", AROUND)
def test_a_step_without_a_call_of_the_network_is_said(with_cache: Any, name: str) -> None:
    cache, named = AROUND[name]
    alone, _, store = with_cache(cache, NEAR, None)
    assert store.reused > 0
    samples, record, _ = with_cache(cache, NEAR, REJECT)
    assert named in record.header.native
    assert "without a call of the network" in record.header.native
    assert torch.equal(samples, alone)


def test_a_run_that_is_left_to_another_keeps_no_anchors(tiny: Any, with_cache: Any, monkeypatch: Any) -> None:
    from speca.session import Session

    kept = []
    close = Session.close
    monkeypatch.setattr(Session, "close", lambda self, status: kept.append(self.streams.nbytes) or close(self, status))
    for cache, _ in (*BY_COUNT.values(), *AROUND.values()):
        with_cache(cache, NEAR, REJECT)
    assert kept == [0] * (len(BY_COUNT) + len(AROUND))


# -- what is no cache


def test_a_patch_that_leaves_blocks_out_of_every_call_is_none(tiny: Any) -> None:
    """As skip-layer guidance has it."""
    model = tiny.model_patcher.clone()
    model.set_model_patch_replace(lambda args, extra: {"img": args["img"]}, "dit", "single_block", 1)
    _, record = run(tiny, model, ACCEPT)
    assert record.header.native is None
    assert record.totals.accepted > 0


def test_a_patch_that_leaves_blocks_out_in_a_part_of_the_run_is_left_alone(tiny: Any) -> None:
    """It may be a cache. Drafts or not, the picture is the one without SpeCa."""

    def in_a_window(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        late = float(args["transformer_options"]["sigmas"][0]) < 0.5
        return {"img": args["img"]} if late else extra["original_block"](args)

    for block in (0, 2):  # one that is skipped in a draft, and the last one, which is not
        model = tiny.model_patcher.clone()
        model.set_model_patch_replace(in_a_window, "dit", "single_block", block)
        plain, _ = run(tiny, model)
        for settings in (REJECT, {"threshold": 0.0}):
            samples, record = run(tiny, model, settings)
            assert torch.equal(samples, plain)
            assert "4 of 5 blocks ran, where 5 ran before" in record.header.native


def test_a_wrapper_that_always_calls_the_network_is_none(tiny: Any) -> None:
    import stand_ins

    for kind in ("predict_noise", "calc_cond_batch", "apply_model", "diffusion_model"):
        model = tiny.model_patcher.clone()
        model.add_wrapper_with_key(kind, "harmless", lambda executor, *args, **kwargs: executor(*args, **kwargs))
        _, record = run(tiny, model, ACCEPT)
        assert record.header.native is None
        assert record.totals.accepted > 0
    model = stand_ins.tiled(tiny.model_patcher, lambda call: [(0, 0), (0, 4), (4, 0), (4, 4)], size=4)
    _, record = run(tiny, model, ACCEPT)
    assert record.header.native is None


def test_a_pack_at_one_end_alone_is_none(tiny: Any) -> None:
    """Inside the network or around its calls: what guides and what only looks is there, too."""
    import stand_ins

    network = tiny.model_patcher.model.diffusion_model
    with stand_ins.hook_at_head(network) as kept:
        _, record = run(tiny, tiny.model_patcher, ACCEPT)
    assert kept
    assert record.header.native is None
    assert record.totals.accepted > 0
    everywhere = stand_ins.cache_in_patches(tiny.model_patcher, stand_ins.Store(near=0.0))
    _, record = run(tiny, everywhere, ACCEPT)
    assert record.header.native is None
    assert record.totals.accepted > 0


def test_counting_costs_nearly_nothing(tiny: Any) -> None:
    """Nineteen blocks' calls, in less than a thousandth of a second."""
    import timeit

    from speca.adapters import recognise
    from speca.comfyui.counting import counted

    anatomy = recognise(tiny_models.build("flux", depth_single_blocks=17).model_patcher.model.diffusion_model)
    assert anatomy.n_blocks == 19

    def count() -> None:
        with counted(anatomy):
            pass

    assert min(timeit.repeat(count, number=10, repeat=5)) / 10 < 1e-3
