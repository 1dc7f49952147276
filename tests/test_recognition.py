"""Which samplers add noise, and which go on from another latent: seen in the latents, on models that tell it nothing.

`path`'s constants were chosen on the emoji DiT and FLUX. Here every sampler runs on the models of the zoo, which they
were not chosen on. Whether a sampler adds noise is found out without them: it does if another seed of its noise, on the
same starting noise, gives another picture.

`--full` takes every model and keeps the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("comfy")

import comfy.sample
import comfy.samplers

import comfy_env
import kept_table
import situations
from speca.config import SpeCaConfig
from speca.path import SamplingPath

pytestmark = pytest.mark.comfy

SAMPLERS = tuple(comfy.samplers.SAMPLER_NAMES)
MODELS = tuple(comfy_env.from_benchmarks("zoo.specs").ZOO)
IN_CI = {"flux-fluent": ("euler", "heun", "euler_ancestral", "dpmpp_2m_sde", "lcm"), "dit-clipart": ("dpmpp_sde",)}
STEPS, CFG = 20, 3.0

REJECTED = SpeCaConfig(threshold=1e-12)
"""Every picture is the uncached one, and what its latents tell is looked at all the same."""

TABLE = kept_table.Table(
    "recognition",
    f"Which samplers are seen to add noise, and on which calls the latent is taken for another: simple, {STEPS} steps,"
    f" guidance {CFG:g}\n(`python dev.py test --full tests/test_recognition.py`). *Adds noise*: another seed gives"
    " another picture.",
    ("model", "sampler", "adds noise", "seen to", "calls taken for jumps", "calls"),
)


@contextmanager
def watched() -> Iterator[list[tuple[SamplingPath, bool]]]:
    """Each evaluation: the path, and whether it took the latent for another."""
    seen: list[tuple[SamplingPath, bool]] = []
    arrive = SamplingPath.arrive

    def watch(self: SamplingPath, x: Any, sigma: float) -> bool:
        jumped = arrive(self, x, sigma)
        seen.append((self, jumped))
        return jumped

    with patch.object(SamplingPath, "arrive", watch):
        yield seen


def cases() -> list[Any]:
    return [
        pytest.param(model, sampler, marks=[] if sampler in IN_CI.get(model, ()) else [pytest.mark.full])
        for model in MODELS
        for sampler in SAMPLERS
    ]


@pytest.mark.parametrize(("model", "sampler"), cases())
def test_noise_is_seen_where_it_is_added_and_nowhere_else(
    model: str, sampler: str, request: pytest.FixtureRequest
) -> None:
    scene = situations.Scene(situations.subject_of(model), REJECTED, STEPS)
    noise = comfy.sample.prepare_noise(scene.zeros(), 5)
    with watched() as seen:
        one = scene.sample(sampler=sampler, cfg=CFG, noise=noise, seed=5)
    other = situations.Scene(scene.subject, None, STEPS).sample(sampler=sampler, cfg=CFG, noise=noise, seed=6)
    if not torch.isfinite(one).all():
        pytest.skip("the picture is not finite without SpeCa either")
    adds = not torch.equal(one, other)
    renoised, jumps = any(path.renoised for path, _ in seen), sum(jumped for _, jumped in seen)
    if request.config.getoption("--full"):
        TABLE.keep(model, sampler, *("yes" if each else "no" for each in (adds, renoised)), jumps, len(seen))
    if adds:
        assert renoised or jumps
    else:
        assert not renoised
        assert not jumps
