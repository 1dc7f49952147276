"""Never wrong in silence: what people do with a model, with the truth beside every call.

The rule: an accepted call's true error may be over three times what it was judged only where that is harmless, which
is where the call would have been accepted had the check known the truth: its error by its weight, with what came before
it, is within the threshold. The estimate has a tail: one accepted call of a hundred may break the rule, of one
situation a single one or one of ten, if what it really costs stays within three times the threshold. Of what is
forecast from anchors of another stream, tile or latent, half the calls break it.

`--full` runs every situation on every model and keeps the table.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

pytest.importorskip("comfy")

import kept_table
import situations
import truth
from speca.config import SpeCaConfig

pytestmark = pytest.mark.comfy

MODELS = ("flux-fluent", "dit-clipart", "qwen-stamps", "cosmos-fluent")
"""Flow matching, noise, flow matching on clips, EDM."""

IN_CI = {
    "flux-fluent": ("cfg", "control net for a part", "prompt that changes", "tiles that move", "repeated sigmas"),
    "dit-clipart": ("guidance by a perturbed network", "inversion and back", "weight hook that changes"),
    "qwen-stamps": ("reference latent", "noise at equal sigma", "context windows", "cond and uncond split in mid run"),
}
STEPS_IN_CI = 10

TAIL, TAIL_OF_ONE = 0.01, 0.1
"""The share of forecast calls that may break the rule: of all situations together, and of one."""

TABLE = kept_table.Table(
    "truth",
    "Situations of real use, default threshold, 20 steps: the network beside every call (`python dev.py test --full"
    " tests/test_situations.py`).\nAn accepted or trusted call *costs* its true error by its weight; *true / judged* is"
    " that over what the check took it for. Over 3 it is\n*harmless* where the sum with the truth is within the"
    " threshold, else *silent*. dB: the worst picture against the uncached one.",
    (
        *("model", "situation", "calls", "accepted", "trusted", "rejected", "true / judged, median", "worst"),
        *("over 3, harmless", "silent", "worst sum with the truth / threshold", "dB", "why native"),
    ),
)

seen: dict[str, list[truth.Told]] = {}


def cases() -> list[Any]:
    return [
        pytest.param(model, name, marks=[] if name in IN_CI.get(model, ()) else [pytest.mark.full])
        for model in MODELS
        for name in situations.SITUATIONS
    ]


def test_situations_are_enough() -> None:
    assert len(situations.SITUATIONS) >= 40
    assert all(name in situations.SITUATIONS for names in IN_CI.values() for name in names)


def in_the_tail(calls: list[truth.Told]) -> bool:
    """Of one situation's calls: whether those that break the rule are as few and as harmless as the estimate's tail."""
    silent = truth.silent(calls)
    few = len(silent) <= max(1, TAIL_OF_ONE * len(truth.forecast(calls)))
    return few and all(call.sum_with_truth <= truth.TOO_FAR * call.threshold for call in silent)


@pytest.mark.parametrize(("model", "name"), cases())
def test_no_accepted_call_is_wrong_in_silence(model: str, name: str, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full")
    subject, steps = situations.subject_of(model), situations.STEPS if full else STEPS_IN_CI
    plain, scene = situations.Scene(subject, steps=steps), situations.Scene(subject, SpeCaConfig(), steps)
    try:
        situations.SITUATIONS[name](plain)
    except situations.NotOnThisModelError as missing:
        pytest.skip(f"{model} {missing}")
    with truth.told() as calls:
        situations.SITUATIONS[name](scene)
    seen.setdefault(model, []).extend(truth.forecast(calls))
    if full:
        keep(model, name, calls, scene, plain)
    for picture in (*scene.pictures, *plain.pictures):
        assert torch.isfinite(picture).all()
    for record in scene.records:
        assert record.status == "finished"
        assert record.totals.calls or record.header.native
    assert in_the_tail(calls), truth.silent(calls)


def test_anchors_of_another_stream_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With perturbed calls taken for plain ones, as their options are the same."""
    monkeypatch.setattr("speca.comfyui.identity.Ordinals.next", lambda self, key, sigma: 0)
    scene = situations.Scene(situations.subject_of("flux-fluent"), SpeCaConfig(), STEPS_IN_CI)
    with truth.told() as calls:
        situations.SITUATIONS["guidance by a perturbed network"](scene)
    assert not in_the_tail(calls)
    assert len(truth.silent(calls)) > len(truth.forecast(calls)) / 3


def keep(model: str, name: str, calls: list[truth.Told], scene: Any, plain: Any) -> None:
    forecast = truth.forecast(calls)
    far = [call for call in forecast if call.ratio > truth.TOO_FAR]
    silent = truth.silent(calls)
    worst = min(truth.psnr(p, q) for p, q in zip(scene.pictures, plain.pictures, strict=True))
    native = {record.header.native for record in scene.records if record.header.native}
    TABLE.keep(
        *(model, name, len(calls)),
        *(sum(call.outcome == outcome for call in calls) for outcome in ("accepted", "trusted", "rejected")),
        statistics.median(call.ratio for call in forecast) if forecast else "-",
        max((call.ratio for call in forecast), default="-"),
        *(len(far) - len(silent), len(silent)),
        max((call.sum_with_truth / call.threshold for call in forecast), default="-"),
        *(f"{worst:.1f}", "; ".join(sorted(native)) or "-"),
    )


@pytest.mark.full
@pytest.mark.parametrize("model", MODELS)
def test_the_estimate_s_tail_is_thin(model: str) -> None:
    """Over all situations that ran in this process before."""
    calls = seen.get(model, [])
    if len(calls) < 1 / TAIL:
        pytest.skip("too few situations ran")
    assert len(truth.silent(calls)) <= TAIL * len(calls)
