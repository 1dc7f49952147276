"""ComfyUI's call as a `Call`: which stream each row belongs to, and what makes it another one."""

from types import SimpleNamespace

import pytest
import torch

from speca.call import ForecastImpossibleError
from speca.comfyui.describe import describe
from speca.path import SamplingPath


class NoisePrediction:
    def noise_scaling(self, sigma, noise, latent):
        return sigma * noise + latent

    def calculate_denoised(self, sigma, output, x):
        return x - sigma * output

    def timestep(self, sigma):
        return sigma * 100


SIGMAS = [4.0, 2.0, 0.0]


def called(x=None, latent=None, hooks=(), **options):
    """Two samples under cond and uncond, at the second step."""
    x = torch.zeros(4, 3, 8, 8) if x is None else x
    latent = x if latent is None else latent
    patcher = SimpleNamespace(current_hooks=SimpleNamespace(hooks=hooks))
    model = SimpleNamespace(model_sampling=NoisePrediction(), current_patcher=patcher)
    given = {"cond_or_uncond": [0, 1], "uuids": ["a", "b"], "sigmas": torch.full((4,), 2.0)} | options
    return describe(model, latent, x, given, SamplingPath(model.model_sampling, SIGMAS))


def test_rows_go_conditioning_by_conditioning():
    call = called()
    assert (call.n_samples, call.conds, call.window) == (2, (0, 1), None)
    assert [(key[0][0], key[1]) for key in call.streams] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert (call.time, call.sigma, call.step, call.progress) == (200.0, 2.0, 1, 0.5)
    assert call.kind == called().kind
    assert call.kind != called(x=torch.zeros(4, 3, 8, 4)).kind


def test_conditionings_of_one_part_of_the_picture_belong_together():
    both = torch.zeros(2, 3, 8, 8)
    cond, uncond = (called(both, cond_or_uncond=[i], uuids=[name]) for i, name in enumerate("ab"))
    assert cond.streams != uncond.streams
    assert cond.part == uncond.part == called().part
    assert cond.part != called(torch.zeros(2, 3, 8, 4), cond_or_uncond=[0], uuids=["a"]).part
    window = SimpleNamespace(index_list=[0, 1])
    assert cond.part != called(both, cond_or_uncond=[0], uuids=["a"], context_window=window).part


def test_the_level_of_noise_comes_with_the_latent():
    call = called()
    assert call.latent.level == call.level == SamplingPath(NoisePrediction(), SIGMAS).level(2.0)
    assert call.schedule.weight(call.step, 5.0) == SamplingPath(NoisePrediction(), SIGMAS).schedule.weight(1, 5.0)


@pytest.mark.parametrize("latent", [[torch.zeros(4, 3, 8, 8)], torch.zeros(2, 3, 8, 8)], ids=["a list", "other rows"])
def test_a_latent_that_is_not_the_networks_own_rows_is_none(latent):
    x = [torch.zeros(4, 3, 8, 8), torch.zeros(4, 8, 20)]
    call = called(x=x, latent=latent)
    assert call.latent is None
    assert len(call.streams) == 4


@pytest.mark.parametrize(
    "changed",
    [
        {"uuids": ["a", "c"]},
        {"context_window": SimpleNamespace(index_list=[4, 5, 6])},
        {"patches": {"attn1_patch": [print]}},
        {"patches_replace": {"dit": {("double_block", 0): print}}},
        {"hooks": (SimpleNamespace(hook_ref=object(), strength=0.5),)},
    ],
    ids=["prompt", "window", "patch", "replaced block", "LoRA schedule"],
)
def test_what_changes_the_function_makes_another_stream(changed):
    assert called(**changed).streams == called(**changed).streams
    assert set(called(**changed).streams) != set(called().streams)


def test_the_strength_of_a_hook_is_part_of_the_stream():
    ref = object()
    weak, strong = (SimpleNamespace(hook_ref=ref, strength=strength) for strength in (0.5, 1.0))
    assert called(hooks=(weak,)).streams != called(hooks=(strong,)).streams


def test_an_empty_list_of_patches_changes_nothing():
    assert called(patches={"attn1_patch": []}).streams == called().streams


def test_a_window_is_known_by_its_first_frame():
    assert called(context_window=SimpleNamespace(index_list=[4, 5, 6])).window == 4


@pytest.mark.parametrize(
    ("options", "said"), [({"sigmas": None}, "no sigma"), ({"cond_or_uncond": [0, 1, 1]}, "divide")]
)
def test_a_call_that_cannot_be_described_says_why(options, said):
    with pytest.raises(ForecastImpossibleError, match=said):
        called(**options)
