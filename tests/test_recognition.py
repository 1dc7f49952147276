"""Which samplers add noise, and which go on from another latent: seen in the latents, on models that tell it nothing.

Most of `path`'s constants were chosen on the emoji DiT and FLUX. Here every sampler runs on the models of the zoo. What
is true is found out without them. A sampler adds noise if another seed of its noise, on the same starting noise, gives
another picture. If none is added it ends where Euler's steps do, within a tenth, and never goes on from another latent;
or far from there, as the cfg++ rule on a flow and what is not stable there: it may be taken for what it is not.

`--full` takes every model and keeps the table.
"""

from __future__ import annotations

import functools
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
from speca import comparison
from speca.config import SpeCaConfig
from speca.path import SamplingPath

pytestmark = pytest.mark.comfy

SAMPLERS = tuple(comfy.samplers.SAMPLER_NAMES)
SPECS = comfy_env.from_benchmarks("zoo.specs")
MODELS = tuple(name for name in SPECS.ZOO if name not in SPECS.UNSEEN)
OF_EACH_KIND = (
    *("euler", "heun", "dpm_2", "lms", "dpmpp_2m", "ddim", "uni_pc", "ipndm", "deis", "res_multistep"),
    *("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "lcm"),
    "er_sde",
)
IN_CI = {"flux-fluent": OF_EACH_KIND, "dit-clipart": OF_EACH_KIND, "hunyuan-arcade": ("euler_cfg_pp",)}
STEPS, CFG, SEED = 20, 3.0, 5
"""Guidance of a model that is not distilled from it; such a one has none besides."""

REJECTED = SpeCaConfig(threshold=1e-12)
"""Every picture is the uncached one, and what its latents tell is looked at all the same."""

ASTRAY = 0.3
"""A picture so far from Euler's, in lengths of that, has little to do with it."""

TABLE = kept_table.Table(
    "recognition",
    f"Which samplers are seen to add noise, and on how many calls the latent is taken for another: simple, {STEPS}"
    f" steps, guidance {CFG:g}, distilled\nmodels without (`python dev.py test --full tests/test_recognition.py`)."
    " *Adds noise*: another seed gives another picture. *From euler*: how far the\npicture lies from that of Euler's"
    " steps, in lengths of that.",
    ("model", "sampler", "adds noise", "seen to", "from euler", "calls", "taken for jumps"),
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


@functools.cache
def euler(model: str, cfg: float) -> torch.Tensor:
    """Where Euler's steps end from the noise of `SEED`."""
    scene = situations.Scene(situations.subject_of(model), None, STEPS)
    return scene.sample(cfg=cfg, seed=SEED)


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
    subject, cfg = situations.subject_of(model), 1.0 if model.endswith("distilled") else CFG
    scene = situations.Scene(subject, REJECTED, STEPS)
    noise = comfy.sample.prepare_noise(scene.zeros(), SEED)
    with watched() as seen:
        one = scene.sample(sampler=sampler, cfg=cfg, noise=noise, seed=SEED)
    other = situations.Scene(subject, None, STEPS).sample(sampler=sampler, cfg=cfg, noise=noise, seed=SEED + 1)
    if not torch.isfinite(one).all():
        pytest.skip("the picture is not finite without SpeCa either")
    adds, renoised = not torch.equal(one, other), any(path.renoised for path, _ in seen)
    away, jumps = comparison.relative_error([one], [euler(model, cfg)]), sum(jumped for _, jumped in seen)
    if request.config.getoption("--full"):
        TABLE.keep(model, sampler, *("yes" if each else "no" for each in (adds, renoised)), away, len(seen), jumps)
    if adds:
        assert renoised or jumps
    else:
        assert not renoised
        assert not jumps or away > ASTRAY
