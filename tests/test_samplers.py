"""Every sampler on every schedule of this ComfyUI.

On a network with random weights: threshold 0 and rejecting every forecast are the uncached run to the bit, and what is
accepted is finite. Panel steps are those of the sampler. `--full` takes every pair, and on a trained model tells how
near the pictures are, how much was accepted and how many checks were wasted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("comfy")

import comfy.sample
import comfy.samplers

import kept_table
import situations
import tiny_models
import truth
from speca.comfyui.attach import attach, attachment_of
from speca.config import SpeCaConfig
from speca.events import Row

pytestmark = pytest.mark.comfy

SAMPLERS = tuple(comfy.samplers.SAMPLER_NAMES)
SCHEDULERS = tuple(comfy.samplers.SCHEDULER_NAMES)

ZERO = SpeCaConfig(threshold=0.0)
REJECT = SpeCaConfig(threshold=1e-12)
ACCEPT = SpeCaConfig(threshold=1e9, max_consecutive=2)

STEPS = 6


@functools.cache
def tiny() -> Any:
    return tiny_models.build("flux", depth=1, depth_single_blocks=2)


@functools.cache
def sigmas(scheduler: str) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(tiny().model_patcher.get_model_object("model_sampling"), scheduler, STEPS)


@functools.cache
def picture() -> torch.Tensor:
    return tiny_models.gaussian(*tiny().latent["samples"].shape, seed=5)


Way = Callable[[Any, str, torch.Tensor], torch.Tensor]
"""(model, sampler, sigmas) -> samples."""


def sample(
    model: Any, sampler: str, sigmas: torch.Tensor, latent: Any = None, noise: Any = None, mask: Any = None
) -> torch.Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny().positive, tiny().negative)
    guider.set_cfg(2.0)
    latent = torch.zeros_like(picture()) if latent is None else latent
    noise = comfy.sample.prepare_noise(latent, 3) if noise is None else noise
    how = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, latent, how, sigmas, denoise_mask=mask, disable_pbar=True, seed=3)


def split(model: Any, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    """The second sampler adds no noise."""
    half = sample(model, sampler, sigmas[: STEPS // 2 + 1])
    return sample(model, sampler, sigmas[STEPS // 2 :], latent=half, noise=torch.zeros_like(half))


def denoise(model: Any, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    return sample(model, sampler, sigmas[2:], latent=picture())


def inpaint(model: Any, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros_like(picture()[:, :1])
    mask[..., :4] = 1.0
    return sample(model, sampler, sigmas, latent=picture(), mask=mask)


def ends_early(model: Any, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    return sample(model, sampler, sigmas[:-2])


def repeated(model: Any, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    return sample(model, sampler, torch.cat([sigmas[:3], sigmas[2:4], sigmas[3:]]))


def flipped(model: Any, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    return sample(model, sampler, sigmas[1:-1].flip(0), latent=picture(), noise=torch.zeros_like(picture()))


def up_again(model: Any, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    return sample(model, sampler, torch.cat([sigmas[:5], sigmas[2:4].flip(0), sigmas[3:]]))


WAYS: dict[str, Way] = {
    way.__name__.replace("_", " "): way for way in (split, denoise, inpaint, ends_early, repeated, flipped, up_again)
}


def keeps_the_promises(way: Way, sampler: str, scheduler: str) -> None:
    def outcome(model: Any) -> torch.Tensor | Exception:
        try:
            return way(model, sampler, sigmas(scheduler).clone())
        except Exception as error:  # a schedule that a sampler does not take
            return error

    plain = outcome(tiny().model_patcher)
    for config in (ZERO, REJECT, ACCEPT):
        model = attach(tiny().model_patcher, config)
        found = outcome(model)
        if isinstance(plain, Exception):
            assert type(found) is type(plain), found
            continue
        assert isinstance(found, torch.Tensor), found
        if config is not ACCEPT:
            assert torch.equal(found.nan_to_num(7e7), plain.nan_to_num(7e7))
        elif torch.isfinite(plain).all():
            assert torch.isfinite(found).all()
        record = attachment_of(model).run_of()
        assert record.totals.accepted == 0 or config is ACCEPT
        check_steps(way, sampler, record, sigmas(scheduler))


def check_steps(way: Way, sampler: str, record: Any, schedule: torch.Tensor) -> None:
    """Each call stands in the step of the schedule that its sigma falls in, and there is one in each."""
    if way is sample:
        for call in record.calls:
            high, low = schedule[call.step : call.step + 2].tolist()
            assert low - 1e-5 <= call.sigma <= high + 1e-5
    steps = [call.step for call in record.calls]
    assert all(0 <= step < record.header.steps for step in steps)
    if sampler in ("euler", "euler_ancestral", "dpm_2") and way is not repeated:
        assert steps == sorted(steps)
    # heunpp2 looks two steps ahead: where sigmas come twice, nobody can tell which of the two it asks for.
    unclear = way is repeated or (sampler == "heunpp2" and way is up_again)
    if sampler not in ("dpm_fast", "dpm_adaptive") and not unclear and not record.header.native:
        assert set(steps) >= set(range(record.header.steps - 1))  # not all ask for the last one


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(sampler: str) -> None:
    keeps_the_promises(sample, sampler, "simple")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler: str) -> None:
    keeps_the_promises(sample, "heun", scheduler)


@pytest.mark.parametrize("way", WAYS)
def test_ways(way: str) -> None:
    for sampler in ("euler", "dpm_2", "euler_ancestral"):
        keeps_the_promises(WAYS[way], sampler, "simple")


@pytest.mark.full
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_pair(sampler: str, scheduler: str) -> None:
    for way in (sample, *WAYS.values()):
        keeps_the_promises(way, sampler, scheduler)


PAYS = 1 / 5
"""The share of accepted checks with which they are worth their blocks on a network of ten."""

MODEL, N_STEPS, LABELS = "flux-fluent", 20, (3, 5)

TABLE = kept_table.Table(
    "samplers",
    f"Every sampler on every schedule of ComfyUI 0.3.75: {MODEL}, {N_STEPS} steps, {len(LABELS)} samples, default"
    " threshold\n(`python dev.py test --full tests/test_samplers.py`). A rejected call is a wasted check. dB: against"
    " the uncached picture.\nEach pair, and each in seven further ways (split sigmas, denoise < 1, inpainting, a"
    " schedule that ends early, repeats,\nis flipped or goes up again), is the uncached run to the bit at threshold 0"
    " and with every forecast rejected, and finite.",
    ("sampler", "scheduler", "calls", "accepted or trusted", "wasted checks", "dB, mean", "dB, worst", "why native"),
)


@pytest.mark.full
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures(sampler: str, scheduler: str) -> None:
    plain = pictures_of(sampler, scheduler)
    scene = pictures_of(sampler, scheduler, SpeCaConfig())
    (record,), finite = scene.records, torch.isfinite(plain.pictures[0]).all()
    rows = rows_of(scene)
    skipped = sum(row.skipped for row in rows)
    wasted = sum(row.outcome == "rejected" for row in rows)
    decibels = [truth.psnr(p, q) for p, q in zip(scene.pictures[0], plain.pictures[0], strict=True)]
    TABLE.keep(
        *(sampler, scheduler, len(rows), f"{skipped / max(len(rows), 1):.0%}", wasted),
        *(f"{sum(decibels) / len(decibels):.1f}", f"{min(decibels):.1f}", record.header.native or "-"),
    )
    assert torch.isfinite(scene.pictures[0]).all() or not finite
    assert pays(rows)


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [
        ("dpm_fast", "ddim_uniform"),
        ("dpm_fast", "normal"),
        ("dpmpp_2s_ancestral_cfg_pp", "beta"),
        ("res_multistep_ancestral_cfg_pp", "kl_optimal"),
    ],
)
def test_checks_that_lead_nowhere_stop(sampler: str, scheduler: str) -> None:
    """Where the sampler adds no noise, or none that is seen, too: of 40 calls, 21 to 29 were checked for nothing."""
    assert pays(rows_of(pictures_of(sampler, scheduler, SpeCaConfig())))


@pytest.mark.parametrize(
    ("sampler", "scheduler"), [("heun", "normal"), ("dpm_2", "normal"), ("dpmpp_2m", "kl_optimal")]
)
def test_errors_count_in_the_steps_beside_their_own(sampler: str, scheduler: str) -> None:
    """All accepted forecasts were within the threshold, and the pictures at 30 to 40 dB: the last sigma but one is so
    small that its step is nothing, and half of heun's step before it."""
    plain, scene = pictures_of(sampler, scheduler), pictures_of(sampler, scheduler, SpeCaConfig())
    assert any(row.skipped for row in rows_of(scene))
    assert min(truth.psnr(p, q) for p, q in zip(scene.pictures[0], plain.pictures[0], strict=True)) > 42


def pictures_of(sampler: str, scheduler: str, config: SpeCaConfig | None = None) -> situations.Scene:
    scene = situations.Scene(situations.subject_of(MODEL), config, N_STEPS)
    scene.sample(labels=LABELS, sampler=sampler, sigmas=scene.sigmas(scheduler))
    return scene


def rows_of(scene: situations.Scene) -> list[Row]:
    (record,) = scene.records
    return [row for call in record.calls for row in call.rows]


def pays(rows: Sequence[Row]) -> bool:
    """A check that leads nowhere costs a block, and what one accepted call saves pays for many."""
    skipped = sum(row.skipped for row in rows)
    wasted = sum(row.outcome == "rejected" for row in rows)
    calls = max(len(rows), N_STEPS * len(LABELS))  # those after a run went native are not among its rows
    return wasted <= calls / 2 or skipped >= PAYS * (skipped + wasted)
