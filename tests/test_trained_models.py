"""The small trained models: they load in a real ComfyUI, and what they draw is what was asked for.

Quality is measured, not assumed: each sample is compared with the artwork of all 48 emoji, drawn at several places,
sizes and turns (`benchmarks/zoo/emoji_pack/judge.py`). Guessing would be right once in 48 times.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
MODELS = BENCHMARKS / "zoo" / "models"
STEMS = ("flux-emoji", "dit-emoji", "hunyuan-video-emoji")
MAX_BYTES = 8_000_000
MIN_BLOCKS = 16

pytestmark = pytest.mark.comfy


def accuracy(judged: torch.Tensor, asked: torch.Tensor) -> float:
    """Share of samples whose nearest emoji is the one that was asked for."""
    return (judged.argmin(1) == asked).float().mean().item()


def test_files_are_small_and_documented():
    for stem in STEMS:
        assert (MODELS / f"{stem}.safetensors").stat().st_size <= MAX_BYTES
        card = (MODELS / f"{stem}.md").read_text(encoding="utf-8")
        for said in ("Apache License 2.0", "emoji-datasource-google", "Final loss", f"{stem}.png", "dev.py train"):
            assert said in card, f"{stem}.md does not say {said}"
        assert (MODELS / f"{stem}.png").stat().st_size > 1000


def draw(emoji, kind: str, cfg: float, steps: int, seed: int = 5, every: int = 1):
    """Samples of every `every`-th class, and those class numbers."""
    model = emoji.models.load(emoji.models.FILES[kind])
    asked = torch.arange(0, len(model.model.speca_emoji.classes), every)
    motions = None
    if model.model.speca_emoji.motions:
        motions = [int(i) % len(model.model.speca_emoji.motions) for i in range(len(asked))]
    return emoji.models.sample(model, asked.tolist(), motions, seed=seed, steps=steps, cfg=cfg), asked


# (cfg, share of samples that must be right): measured on another seed than the cards', less a margin
@pytest.mark.parametrize(("cfg", "bar"), [(1.0, 0.8), (4.0, 0.85)])
def test_flux_draws_what_was_asked_for(emoji, cfg, bar):
    samples, asked = draw(emoji, "flux", cfg, steps=14, every=3)
    assert samples.shape == (16, 3, 32, 32)
    assert accuracy(emoji.judge.distances(samples, 48), asked) >= bar


def test_hunyuan_video_draws_what_was_asked_for(emoji):
    samples, asked = draw(emoji, "hunyuan_video", 2.5, steps=12, every=8)
    assert samples.shape == (6, 3, 5, 32, 32)
    middle = emoji.judge.middle_frames(samples)
    judged = emoji.judge.distances(middle, 48, scales=(0.64, 0.72), angles=(-0.1, 0.1))
    assert accuracy(judged, asked) >= 0.6


def centre(frames: torch.Tensor) -> torch.Tensor:
    """Where the emoji is: (N, 3, H, W) -> (N, 2) mean x and y in pixels of what differs from the corner's colour."""
    weight = (frames - frames[:, :, :1, :1]).abs().sum(1).clamp(max=1.0)
    weight = torch.where(weight > 0.3, weight, 0.0)
    position = torch.arange(frames.shape[-1], dtype=torch.float32)
    mass = weight.sum((1, 2)).clamp(min=1e-3)
    return torch.stack(((weight.sum(1) @ position) / mass, (weight.sum(2) @ position) / mass), 1)


def test_hunyuan_video_moves_as_asked(emoji):
    """Opposite motions from the same noise differ in their direction. They are weak: a pixel or two is asked for."""
    model = emoji.models.load_hunyuan_video()

    def travel(motion: str) -> torch.Tensor:
        clips = emoji.models.sample(model, ["orange", "red heart", "balloon"], motion, seed=3, steps=8, cfg=2.5)
        return (centre(clips[:, :, -1]) - centre(clips[:, :, 0])).mean(0)  # (2,): x, y in pixels

    assert (travel("right") - travel("left"))[0] > 1
    assert (travel("down") - travel("up"))[1] > 1


@pytest.mark.parametrize(("cfg", "bar"), [(1.0, 0.7), (4.0, 0.8)])
def test_dit_draws_what_was_asked_for(emoji, cfg, bar):
    import comfy.sample

    from speca.dit.comfy_model import class_conditioning, load_dit

    model = load_dit(MODELS / "dit-emoji.safetensors")
    asked = torch.arange(0, 48, 3)
    latent = torch.zeros(len(asked), 3, 32, 32)
    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, 5),
        14,
        cfg,
        "euler",
        "simple",
        class_conditioning(asked.tolist()),
        class_conditioning([-1] * len(asked)),
        latent,
        disable_pbar=True,
        seed=5,
    )
    assert accuracy(emoji.judge.distances(samples, 48), asked) >= bar


def test_networks_are_comfyuis_own_and_deep(emoji):
    import comfy.ldm.flux.model
    import comfy.ldm.hunyuan_video.model

    flux = emoji.models.load_flux().model.diffusion_model
    video = emoji.models.load_hunyuan_video().model.diffusion_model
    assert type(flux) is comfy.ldm.flux.model.Flux
    assert type(video) is comfy.ldm.hunyuan_video.model.HunyuanVideo
    for network in (flux, video):
        assert len(network.double_blocks) + len(network.single_blocks) >= MIN_BLOCKS


def test_the_class_matters_and_the_seed_does(emoji):
    """A model that ignored its condition, or its noise, would still pass a look at one picture."""
    model = emoji.models.load_flux()
    noise_1 = emoji.models.sample(model, ["red heart", "cactus"], seed=1, steps=8)
    noise_2 = emoji.models.sample(model, ["red heart", "cactus"], seed=2, steps=8)
    assert torch.equal(noise_1, emoji.models.sample(model, ["red heart", "cactus"], seed=1, steps=8))
    assert (noise_1[0] - noise_1[1]).abs().mean() > 0.2
    assert (noise_1 - noise_2).abs().mean() > 0.02


@pytest.mark.parametrize("wanted", ["no such emoji", 48, -1])
def test_an_unknown_class_is_refused(emoji, wanted):
    with pytest.raises(ValueError, match="emoji"):
        emoji.models.conditioning("flux", wanted)


def test_another_file_is_refused(emoji, tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not a small emoji model"):
        emoji.models.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("kind", "images"), [("Flux", 2), ("HunyuanVideo", 10)])
def test_demo_graph_runs(graphs, kind, images, tmp_path):
    """Core KSampler between the demo's nodes, run by ComfyUI's executor."""
    graph = {
        "1": {"class_type": f"SpeCaDemoLoad{kind}", "inputs": {}},
        "2": {"class_type": "SpeCaDemoPrompt", "inputs": {"model": ["1", 0], "emoji": "fox", "motion": "any"}},
        "3": {"class_type": "SpeCaDemoLatent", "inputs": {"model": ["1", 0], "batch_size": 2}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["2", 1],
                "latent_image": ["3", 0],
                "seed": 1,
                "steps": 4,
                "cfg": 2.5,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "5": {"class_type": "SpeCaDemoDecode", "inputs": {"samples": ["4", 0], "enlarge": 4, "method": "lanczos"}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "emoji"}},
    }
    result = graphs.run(graph)
    assert result.success, result.error
    assert len(result.outputs["6"]["images"]) == images


def test_core_decodes_the_pictures_too(graphs, emoji):
    """The demo graph may use core's "pixel_space" VAE instead of the demo's own node."""
    import nodes

    from zoo.emoji_pack.demo_nodes import decode

    latents = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    (vae,) = nodes.VAELoader().load_vae("pixel_space")
    (images,) = nodes.VAEDecode().decode(vae, {"samples": latents})
    torch.testing.assert_close(images, decode(latents), atol=1e-2, rtol=0)  # core may decode in half precision


def test_cards_tell_the_training_that_the_file_records():
    import safetensors

    for stem in STEMS:
        with safetensors.safe_open(MODELS / f"{stem}.safetensors", framework="pt") as file:
            training = json.loads(file.metadata()["training"])
        card = (MODELS / f"{stem}.md").read_text(encoding="utf-8")
        assert f"| Run | {training['steps']} steps of {training['batch']}," in card
