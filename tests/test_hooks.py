"""LoRA schedules (core's hooks) change the weights in the middle of a run: what came before is no anchor then."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.comfy

WEIGHT = "diffusion_model.single_blocks.0.linear1"


def scheduled(tiny, second_strength):
    """The tiny model's positive conditioning under a LoRA of strength 1 that changes at half of the run."""
    import comfy.hooks

    out_features, in_features = tiny.model_patcher.model.diffusion_model.single_blocks[0].linear1.weight.shape
    generator = torch.Generator().manual_seed(5)
    lora = {
        f"{WEIGHT}.lora_up.weight": torch.randn(out_features, 4, generator=generator) * 0.2,
        f"{WEIGHT}.lora_down.weight": torch.randn(4, in_features, generator=generator) * 0.2,
    }
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=second_strength, start_percent=0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    return comfy.hooks.set_hooks_for_conditioning(tiny.positive, hooks)


def run(tiny, positive, **settings):
    import tiny_models
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    model = attach(tiny.model_patcher, SpeCaConfig(**settings)) if settings else tiny.model_patcher
    latent = tiny_models.ksample(model, tiny.latent, positive, tiny.negative, 1.0, steps=16)
    return latent, settings and [call.rows[0].reason for call in attachment_of(model).run_of(latent).calls]


def test_a_keyframe_starts_anew():
    import tiny_models

    tiny = tiny_models.build("flux")
    _, reasons = run(tiny, scheduled(tiny, 0.25), threshold=1e6, max_consecutive=100)
    changes = [i for i, reason in enumerate(reasons) if reason == "warm_up"]
    assert changes[0] == 0
    assert len(changes) == 2
    assert changes[1] > 5
    assert set(reasons) == {"warm_up", "within", "unchecked"}


def test_a_schedule_that_stays_the_same_is_one_run():
    import tiny_models

    tiny = tiny_models.build("flux")
    _, reasons = run(tiny, tiny.positive, threshold=1e6, max_consecutive=100)
    assert [i for i, reason in enumerate(reasons) if reason == "warm_up"] == [0]


def test_rejecting_everything_gives_the_scheduled_picture():
    import tiny_models

    tiny = tiny_models.build("flux")
    positive = scheduled(tiny, 0.0)
    plain, _ = run(tiny, positive)
    assert torch.equal(run(tiny, positive, threshold=1e-9)[0], plain)
    assert not torch.equal(run(tiny, tiny.positive)[0], plain)  # the schedule is in force at all
