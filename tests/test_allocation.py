"""What newer versions of ComfyUI do around a network's block loop, by stand-ins of its names: allocations are recorded
and given back at the loop's end (0.34 on, CUDA), weights are fetched ahead."""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny_models

pytestmark = pytest.mark.comfy


class Recorder(types.ModuleType):
    """Stands in for `comfy.model_prefetch` (0.35): what is allocated between begin and end must be gone at the end, but
    for what was allocated in a pause. Where the real one ends the process, this one notes how many were left."""

    def __init__(self, args: Any) -> None:
        super().__init__("comfy.model_prefetch")
        self.args = args
        self.left: list[int] = []
        self.scopes = 0
        self._inside: _Allocations | None = None

    def malloc_graph_enabled(self, device: Any) -> bool:
        return not getattr(self.args, "disable_comfy_compiler", False)

    def malloc_graph_begin(self, device: Any) -> None:
        if self.malloc_graph_enabled(device):
            self.scopes += 1
            self._inside = _Allocations().__enter__()

    def malloc_graph_end(self) -> None:
        if self._inside is not None:
            inside, self._inside = self._inside, None
            inside.__exit__(None, None, None)
            self.left.append(sum(ref() is not None for ref in inside.made))


class _Allocations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(leaf) for leaf in tree_leaves((args, kwargs))}  # comes back from what works in place
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and id(leaf) not in given]
        self.made += map(weakref.ref, made)
        return out


def brackets_its_blocks(recorder: Recorder, network: Any) -> Any:
    """As LTX-2, MiniMax H3 and Qwen-Image 2.1 do; the output leaves the scope in a tensor that was there before."""
    native = type(network).forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = torch.empty_like(x)
        recorder.malloc_graph_begin(x.device)
        try:
            out.copy_(native(self, x, *args, **kwargs))
        finally:
            recorder.malloc_graph_end()
        return out

    becomes_the_forward_of(network, forward)


def becomes_the_forward_of(network: Any, forward: Callable[..., Any]) -> None:
    """As if core had it so."""
    kind = type(network)
    forward.__module__ = kind.__module__
    network.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@pytest.fixture
def recorder(comfy: None, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    import comfy as package
    import comfy.cli_args

    recorder = Recorder(comfy.cli_args.args)
    monkeypatch.setattr(comfy.cli_args.args, "disable_comfy_compiler", False, raising=False)
    monkeypatch.setitem(sys.modules, "comfy.model_prefetch", recorder)
    monkeypatch.setattr(package, "model_prefetch", recorder, raising=False)
    return recorder


@pytest.fixture
def tiny(recorder: Recorder) -> tiny_models.TinyModel:
    tiny = tiny_models.build("flux")
    brackets_its_blocks(recorder, tiny.model_patcher.model.diffusion_model)
    return tiny


def run(tiny: tiny_models.TinyModel, callback: Callable[..., None] | None = None, **settings: Any) -> tuple[Any, Any]:
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    patcher = attach(tiny.model_patcher, SpeCaConfig(**({"order": 1, "accumulate_error": False} | settings)))
    samples = tiny_models.ksample(patcher, *tiny[1:], steps=8, callback=callback)
    return samples, attachment_of(patcher).run_of()


def test_nothing_that_outlives_the_blocks_is_recorded(tiny: Any, recorder: Recorder) -> None:
    plain = tiny_models.ksample(*tiny, steps=8)
    assert recorder.scopes == 8
    assert set(recorder.left) == {0}
    samples, record = run(tiny, threshold=1e-9)
    assert record.totals.rejected > 0
    assert torch.equal(samples, plain)
    _, record = run(tiny, threshold=1e9)
    assert record.totals.accepted > 0
    assert set(recorder.left) == {0}


def test_the_recorder_is_off_for_the_run_and_on_again_after(tiny: Any, recorder: Recorder) -> None:
    during = []
    run(tiny, lambda *_: during.append(recorder.args.disable_comfy_compiler), threshold=1e9)
    assert set(during) == {True}
    assert recorder.args.disable_comfy_compiler is False
    assert recorder.scopes == 0


def test_it_is_on_again_after_an_interrupt(tiny: Any, recorder: Recorder) -> None:
    import comfy.model_management

    def interrupt(step: int, *_: Any) -> None:
        if step == 3:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(tiny, interrupt, threshold=1e9)
    assert recorder.args.disable_comfy_compiler is False


def test_a_run_within_a_run_leaves_it_off_for_the_outer_one(tiny: Any, recorder: Recorder) -> None:
    during = []

    def another(step: int, *_: Any) -> None:
        if step == 2:
            run(tiny_models.build("auraflow"), threshold=1e9)
        during.append(recorder.args.disable_comfy_compiler)

    run(tiny, another, threshold=1e9)
    assert set(during) == {True}
    assert recorder.args.disable_comfy_compiler is False


def test_who_had_it_off_finds_it_off(tiny: Any, recorder: Recorder) -> None:
    recorder.args.disable_comfy_compiler = True
    run(tiny, threshold=1e9)
    assert recorder.args.disable_comfy_compiler is True


def test_a_native_run_is_recorded_as_ever(tiny: Any, recorder: Recorder) -> None:
    _, record = run(tiny, threshold=1e9, warmup_steps=8)
    assert record.header.native is not None
    assert recorder.scopes == 8


def test_a_recorder_that_cannot_be_turned_off_keeps_speca_off(
    tiny: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(recorder.args, "disable_comfy_compiler")
    plain = tiny_models.ksample(*tiny, steps=8)
    samples, record = run(tiny, threshold=1e9)
    assert record.header.native == (
        "this ComfyUI records the allocations of a network's blocks and has no switch for it; "
        "what SpeCa keeps must not be recorded, so the run is computed natively"
    )
    assert torch.equal(samples, plain)
    assert set(recorder.left) == {0}


def test_a_recorder_that_is_not_in_force_on_the_device_is_left_alone(
    tiny: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "malloc_graph_enabled", lambda device: False)
    monkeypatch.delattr(recorder.args, "disable_comfy_compiler")
    _, record = run(tiny, threshold=1e9)
    assert record.header.native is None
    assert record.totals.accepted > 0


def test_weights_of_skipped_blocks_are_not_fetched_ahead(comfy: None) -> None:
    """`transformer_options["prefetch_dynamic_vbars"]`, set by `BaseModel._apply_model`, tells the block loop to."""
    tiny = tiny_models.build("flux")
    network, fetched = tiny.model_patcher.model.diffusion_model, []
    native = type(network).forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        fetched.append(kwargs["transformer_options"].get("prefetch_dynamic_vbars", False))
        return native(self, x, *args, **kwargs)

    becomes_the_forward_of(network, forward)

    def wanted(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        options = kwargs["transformer_options"] | {"prefetch_dynamic_vbars": True}
        return args, kwargs | {"transformer_options": options}

    network.register_forward_pre_hook(wanted, with_kwargs=True)
    tiny_models.ksample(*tiny, steps=8)
    assert fetched == [True] * 8
    fetched.clear()
    _, record = run(tiny, threshold=1e9, check_every=1)
    assert record.totals.accepted > 0
    first, *others = (call.outcome != "accepted" for call in record.calls)
    assert fetched == [first, False, *others]  # a pass without the blocks tells what is embedded
