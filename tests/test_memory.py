"""Nothing grows from run to run."""

from __future__ import annotations

import gc

import pytest
import torch

import tiny_models

pytestmark = pytest.mark.comfy


def counts() -> dict[str, int]:
    """Live tensors, their bytes, and what a run is made of. Tensors without memory are left out."""
    from torch._subclasses.fake_tensor import FakeTensor

    from speca.comfyui.run import Run
    from speca.history import Anchor
    from speca.session import Session
    from speca.stream import Stream

    gc.collect()
    found = {"tensors": 0, "bytes": 0}
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor):
            found["tensors"] += 1
            found["bytes"] += thing.numel() * thing.element_size()
        elif kind in (Run, Session, Stream, Anchor):
            found[kind.__name__] = found.get(kind.__name__, 0) + 1
    return found


def test_a_hundred_runs_leave_nothing_behind(comfy: None) -> None:
    """Half of them accept every forecast, half of them none."""
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    tiny = tiny_models.build("flux", depth=1, depth_single_blocks=1)
    models = [attach(tiny.model_patcher, SpeCaConfig(threshold=t)) for t in (1e9, 1e-12)]

    def run(seed: int) -> None:
        tiny_models.ksample(models[seed % 2], *tiny[1:], steps=3, seed=seed)

    for seed in range(6):
        run(seed)
    before = counts()
    for seed in range(100):
        run(seed)
    after = counts()
    accepting, rejecting = (attachment_of(model).run_of().totals for model in models)
    assert accepting.accepted > 0
    assert rejecting.rejected > 0
    assert rejecting.cache_bytes > 0
    print(f"before {before}, after {after}")
    # Fewer is no fault: what tests before this one left behind may go meanwhile.
    assert all(after[name] <= before[name] for name in ("tensors", "bytes"))
    assert not after.keys() & {"Run", "Session", "Stream", "Anchor"}
