"""Anchors: what is kept, and that combining them is the weighted sum in every dtype and chunking."""

from dataclasses import replace

import pytest
import torch

from speca import history as history_module
from speca.history import Anchor, History, combine

CPU = torch.device("cpu")


def anchor(time, value=0.0):
    return Anchor(time, (torch.full((1, 2, 3), value),), (torch.full((1, 4), value),))


def test_the_newest_anchors_are_kept_oldest_first():
    history = History(depth=3)
    for time in (5.0, 4.0, 3.0, 2.0):
        history.record(anchor(time))
    assert history.times == [4.0, 3.0, 2.0]
    assert history.nbytes == 3 * (6 + 4) * 4


def test_a_second_call_at_the_same_time_replaces_the_first():
    history = History(depth=3)
    for time, value in ((3.0, 1.0), (2.0, 2.0), (3.0, 9.0)):
        history.record(anchor(time, value))
    assert history.times == [2.0, 3.0]
    assert history.forecast_output([0.0, 1.0], CPU)[0].unique().tolist() == [9.0]


def test_an_anchor_with_features_of_another_shape_begins_anew():
    history = History(depth=3)
    history.record(anchor(3.0))
    history.record(replace(anchor(2.0), features=(torch.ones(1, 5, 3),)))
    assert history.times == [2.0]
    history.record(replace(anchor(1.0), features=(torch.ones(1, 5, 3),)))
    assert history.times == [2.0, 1.0]


def test_what_blocks_added_is_kept_for_a_lone_anchor_only():
    history = History(depth=3)
    history.record(replace(anchor(3.0), added=(torch.ones(1, 2, 3),)))
    assert history.nbytes == (6 + 4 + 6) * 4
    assert history.repeat_added(CPU)[0].unique().tolist() == [1.0]
    history.record(anchor(2.0))
    assert history.lone is None
    assert history.nbytes == 2 * (6 + 4) * 4


def test_forecasts_of_features_and_output_use_the_same_weights():
    history = History(depth=2)
    history.record(anchor(1.0, 10.0))
    history.record(anchor(2.0, 20.0))
    (features,), (output,) = history.forecast_features([-1, 2], CPU), history.forecast_output([-1, 2], CPU)
    assert features.shape == (1, 2, 3)
    assert features.unique().tolist() == output.unique().tolist() == [30.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [7, 1 << 24])
def test_combine_is_the_weighted_sum_rounded_once(dtype, chunk, monkeypatch):
    monkeypatch.setattr(history_module, "CHUNK", chunk)
    torch.manual_seed(0)
    tensors = [torch.randn(1, 5, 9).to(dtype) for _ in range(3)]
    weights = [3.0, -8.0, 6.0]
    exact = sum(w * t.double() for w, t in zip(weights, tensors, strict=True))
    combined = combine(weights, tensors, CPU)
    assert combined.dtype == dtype
    assert combined.shape == (1, 5, 9)
    torch.testing.assert_close(combined, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_reuse_is_exact_and_a_copy(dtype):
    tensor = torch.randn(1, 6).to(dtype)
    copied = combine([0.0, 1.0], [torch.zeros_like(tensor), tensor], CPU)
    assert torch.equal(copied, tensor)
    copied.zero_()
    assert tensor.abs().sum() > 0


def test_combine_reads_views_with_any_strides():
    base = torch.arange(12.0).view(3, 4)
    assert torch.equal(combine([2.0], [base.T], CPU), 2 * base.T)
