"""Conditionings on several devices at once, as core's MultiGPU node has them from 0.23 on: a thread for each device,
with a copy of the model of its own.

On an older ComfyUI the threads are stood in for; on a newer one core's own split is run, over two names of the one CPU.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import dit_helpers
import tiny_models

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("endless_patience")]

STEPS = 10
SETTINGS = {"threshold": 9.0, "order": 1, "accumulate_error": False}


def build() -> tiny_models.TinyModel:
    return tiny_models.build("flux")._replace(cfg=3.0)


def run(patcher: Any, tiny: tiny_models.TinyModel, **settings: Any) -> tuple[torch.Tensor, Any]:
    """The latent; and with settings, SpeCa's record."""
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    model = attach(patcher, SpeCaConfig(**settings)) if settings else patcher
    samples = tiny_models.ksample(model, *tiny[1:], steps=STEPS)
    return samples, settings and attachment_of(model).run_of(samples)


def outcomes(record: Any) -> dict[int, list[str]]:
    """By conditioning: those of one step end in any order."""
    found: dict[int, list[str]] = {}
    for call in record.calls:
        for cond in call.conds:
            found.setdefault(cond, []).append(call.outcome)
    return found


class Apart:
    """Each conditioning in a call of its own, on a model of its own, at the same time."""

    def __init__(self, other: Any) -> None:
        """other: the second model."""
        self._other = other
        self.threads: set[int] = set()

    def __call__(self, args: dict[str, Any]) -> list[torch.Tensor]:
        """`model_options["sampler_calc_cond_batch_function"]` (comfy/samplers.py)."""
        self._other.current_patcher = args["model"].current_patcher
        models, places = (args["model"], self._other), range(len(args["conds"]))
        with ThreadPoolExecutor(len(models)) as pool:
            meeting = threading.Barrier(len(models))
            return list(pool.map(lambda i: self._of(i, models[i], args, meeting), places))

    def _of(self, place: int, model: Any, args: dict[str, Any], meeting: threading.Barrier) -> Any:
        import comfy.samplers

        meeting.wait(timeout=60)
        self.threads.add(threading.get_ident())
        alone = [cond if i == place else None for i, cond in enumerate(args["conds"])]
        with torch.no_grad():  # which is a thread's own
            out = comfy.samplers.calc_cond_batch(model, alone, args["input"], args["sigma"], args["model_options"])
        return out[place]


class TestThreads:
    @pytest.fixture
    def often(self) -> Iterator[None]:
        """Threads take turns as often as they can, so that what they share is found in the middle of things."""
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        yield
        sys.setswitchinterval(before)

    def apart(self, **settings: Any) -> tuple[torch.Tensor, Any, Apart]:
        tiny, other = build(), build()
        split = Apart(other.model_patcher.model)
        # A function, for a clone of the patcher copies an object.
        tiny.model_patcher.set_model_sampler_calc_cond_batch_function(lambda args: split(args))
        return *run(tiny.model_patcher, tiny, **settings), split

    def test_each_decides_alone_and_the_picture_repeats(self, often: None, caplog: pytest.LogCaptureFixture) -> None:
        """Which of the two is first is chance, so neither waits for the other."""
        expected, first, _ = self.apart(**SETTINGS)
        assert first.totals.accepted > 0
        for _ in range(3):
            samples, record, split = self.apart(**SETTINGS)
            assert record.header.native is None
            assert outcomes(record) == outcomes(first)
            assert torch.equal(samples, expected)
            assert len(split.threads) > 1
        assert "could not be followed" not in caplog.text

    def test_rejecting_everything_is_the_split_model(self, often: None) -> None:
        plain, _, _ = self.apart()
        samples, record, _ = self.apart(**SETTINGS | {"threshold": 1e-9})
        assert record.totals.rejected == 2 * (STEPS - 1)
        assert torch.equal(samples, plain)

    def test_a_speed_is_aimed_at_by_both(self, often: None, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(3):
            _, record, _ = self.apart(mode="speed", target_speedup=2.0, order=1)
            assert record.header.native is None
            assert record.totals.calls == 2 * STEPS
        assert "could not be followed" not in caplog.text


class TestCore:
    """The node's own work, from the copies of the model to the threads."""

    @pytest.fixture
    def split(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
        """What the MultiGPU node makes of a model, where there are two devices."""
        import comfy.model_management

        multigpu = pytest.importorskip("comfy.multigpu", reason="this ComfyUI does not split a model over devices")
        devices = [torch.device("cpu"), torch.device("cpu", 0)]  # told apart, and the same
        monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices)
        return lambda patcher: multigpu.create_multigpu_deepclones(patcher, len(devices))

    @pytest.fixture
    def tiny(self, split: Any) -> tiny_models.TinyModel:
        made = build()
        made.model_patcher.cached_patcher_init = (lambda: build().model_patcher, ())
        return made

    def test_a_model_with_speca_is_split(self, split: Any, tiny: tiny_models.TinyModel) -> None:
        from speca.comfyui.attach import attach, attachment_of
        from speca.config import SpeCaConfig

        called: list[int] = []
        plain = tiny_models.ksample(split(tiny.model_patcher), *tiny[1:], steps=STEPS)
        for made in (
            split(attach(tiny.model_patcher, SpeCaConfig(**SETTINGS))),
            attach(split(tiny.model_patcher), SpeCaConfig(**SETTINGS)),
        ):
            models = [made.model, *(other.model for other in made.get_additional_models_with_key("multigpu"))]
            assert len({id(model.diffusion_model) for model in models}) == 2
            for place, model in enumerate(models):
                model.diffusion_model.register_forward_pre_hook(lambda *_, place=place: called.append(place))
            samples = tiny_models.ksample(made, *tiny[1:], steps=STEPS)
            record = attachment_of(made).run_of(samples)
            assert set(called) == {0, 1}
            assert record.header.native is None
            assert sorted(outcomes(record)) == [0, 1]
            assert all("accepted" in of_cond for of_cond in outcomes(record).values())
            assert not torch.equal(samples, plain)

    def test_rejecting_everything_is_the_split_model(self, split: Any, tiny: tiny_models.TinyModel) -> None:
        plain, _ = run(split(tiny.model_patcher), tiny)
        samples, record = run(split(tiny.model_patcher), tiny, **SETTINGS | {"threshold": 1e-9})
        assert record.totals.rejected == 2 * (STEPS - 1)
        assert torch.equal(samples, plain)

    def test_a_dit_of_this_pack_s_loader(self, split: Any, dit: Any) -> None:
        made = split(dit)
        (other,) = made.get_additional_models_with_key("multigpu")
        assert same_weights(made, other)


@pytest.fixture
def dit(tmp_path: Path) -> Any:
    from safetensors.torch import save_file

    from speca.dit.comfy_model import load_dit

    path = tmp_path / "tiny.safetensors"
    save_file(dit_helpers.authors_state_dict(), path, metadata=dit_helpers.header())
    return load_dit(path, torch.float32)


def same_weights(one: Any, other: Any) -> bool:
    """The same values in memory of their own."""
    ours, theirs = (patcher.model.diffusion_model.state_dict() for patcher in (one, other))
    assert list(ours) == list(theirs)
    return all(torch.equal(ours[k], theirs[k]) and ours[k].data_ptr() != theirs[k].data_ptr() for k in ours)


def test_this_pack_s_loader_says_how_to_make_a_second_copy(dit: Any) -> None:
    """Newer ComfyUI refuses to split a model whose loader does not (`ModelPatcher.deepclone_multigpu`)."""
    make, arguments = dit.cached_patcher_init
    assert same_weights(dit, make(*arguments))
