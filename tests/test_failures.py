"""What fails in SpeCa's own bookkeeping costs no picture; an interrupt and a lack of memory are never swallowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny_models

pytestmark = pytest.mark.comfy


def run(config: Any = None, tiny: Any = None) -> tuple[torch.Tensor, Any]:
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    tiny = tiny or tiny_models.build("flux")
    patcher = attach(tiny.model_patcher, config or SpeCaConfig(threshold=1e-12))
    samples = tiny_models.ksample(patcher, *tiny[1:], steps=8)
    return samples, attachment_of(patcher).run_of()


BROKEN = [
    "speca.path.SamplingPath.arrive",
    "speca.path.SamplingPath.leave",
    "speca.comfyui.run.describe",
    "speca.session.forecast",
    "speca.session.row_errors",
    "speca.stream.Stream.keep",
    "speca.tally.Tally.count",
    "speca.comfyui.network.BoundNetwork.embedded",
]


def breaking(error: Exception) -> Any:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    return broken


@pytest.mark.parametrize("what", BROKEN)
def test_a_step_that_cannot_be_followed_is_computed(comfy: None, monkeypatch: Any, what: str) -> None:
    tiny = tiny_models.build("flux")
    plain = tiny_models.ksample(*tiny, steps=8)
    monkeypatch.setattr(what, breaking(ValueError("broken")))
    samples, record = run(tiny=tiny)
    assert torch.equal(samples, plain)
    assert record.header.native == "SpeCa failed twice in this run (ValueError: broken); the rest is computed natively"
    assert record.status == "finished"


@pytest.mark.parametrize("what", ["speca.comfyui.attach.Attachment._open", "speca.comfyui.attach._fingerprint"])
def test_a_run_that_cannot_be_told_of_is_drawn(comfy: None, monkeypatch: Any, what: str) -> None:
    tiny = tiny_models.build("flux")
    plain = tiny_models.ksample(*tiny, steps=8)
    monkeypatch.setattr(what, breaking(ValueError("broken")))
    samples, record = run(tiny=tiny)
    assert torch.equal(samples, plain)
    assert record is None


@pytest.mark.parametrize("what", [BROKEN[0], BROKEN[2], BROKEN[5], BROKEN[7]])
@pytest.mark.parametrize("kind", ["interrupt", "memory"])
def test_an_interrupt_and_a_lack_of_memory_pass(comfy: None, monkeypatch: Any, what: str, kind: str) -> None:
    import comfy.model_management

    interrupt = comfy.model_management.InterruptProcessingException
    error = interrupt() if kind == "interrupt" else torch.OutOfMemoryError("full")
    monkeypatch.setattr(what, breaking(error))
    with pytest.raises(type(error)):
        run()


def test_where_memory_runs_out_anchors_go_first(comfy: None, monkeypatch: Any) -> None:
    from speca.stream import Streams

    gone = []
    start_anew = Streams.start_anew
    monkeypatch.setattr(Streams, "start_anew", lambda self: (start_anew(self), gone.append(self.nbytes)))
    monkeypatch.setattr("speca.session.row_errors", breaking(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        run()
    assert gone == [0]
