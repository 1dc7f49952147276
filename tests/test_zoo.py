"""The zoo: its data on made-up files, its networks before training, and what of it is trained."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from zoo.data import games, photographs, sprites
from zoo.data.source import Origin, evenly, pick
from zoo.specs import ZOO

ORIGIN = Origin("a package", "drawings", "a licence")
LARGEST_FILE = 8e6
SOURCES_FOR_THE_ZOO = 4

specs = pytest.mark.parametrize("name", list(ZOO))


# --- Data -------------------------------------------------------------------------------------------------------------


def test_every_class_is_drawn_as_often_and_every_member_of_it():
    counts = torch.tensor([30, 10])
    picked, labels = pick(counts, 8000, torch.Generator().manual_seed(0))
    assert labels.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert sorted(set(picked[labels == 0].tolist())) == list(range(30))
    assert sorted(set(picked[labels == 1].tolist())) == list(range(30, 40))


def test_of_many_as_many_as_wanted_are_taken_all_over():
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(10, 5) == [0, 2, 4, 6, 8]


def _drawing(path: Path, seed: int, side: int = 30) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, "RGBA").save(path)


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(sprites, "CACHE", tmp_path)
    monkeypatch.setattr(sprites, "FEWEST", 3)
    for seed in range(4):
        _drawing(tmp_path / "many" / f"{seed}.png", seed)
    _drawing(tmp_path / "many" / "again.png", 0)
    for seed in range(2):
        _drawing(tmp_path / "few" / f"{seed}.png", 100 + seed)
    (tmp_path / "many" / "broken.png").write_bytes(b"not a picture")
    files = {name: sorted((tmp_path / name).iterdir()) for name in ("many", "few")}
    return sprites.sprites("test", ORIGIN, files)


def test_drawings_are_distinct_and_small_classes_and_broken_files_are_left_out(drawings):
    assert drawings.classes == ("many",)
    assert drawings.counts == (4,)


def test_drawings_are_pictures_and_the_same_for_the_same_seed(drawings):
    one, labels = drawings.draw(5, 16, 0, torch.Generator().manual_seed(1))
    two, _ = drawings.draw(5, 16, 0, torch.Generator().manual_seed(1))
    assert one.shape == (5, 3, 16, 16)
    assert labels.tolist() == [0] * 5
    assert one.min() >= -1
    assert one.max() <= 1
    assert torch.equal(one, two)


def test_crops_are_of_the_size_that_is_asked_for_and_vary(monkeypatch):
    monkeypatch.setattr(photographs, "CROPS", 50)
    picture = torch.arange(256, dtype=torch.uint8).expand(3, 96, 256).contiguous()
    crops, labels = photographs.Crops(ORIGIN, [picture]).draw(6, 32, 0, torch.Generator().manual_seed(2))
    assert crops.shape == (6, 3, 32, 32)
    assert labels.tolist() == [0] * 6
    assert len({round(c.mean().item(), 4) for c in crops}) == 6
    assert crops.abs().max() <= 1


def test_a_camera_moves_steadily_and_stays_within_the_picture(monkeypatch):
    """Of a picture whose value is the column, a frame's mean says where the camera is."""
    monkeypatch.setattr(photographs, "CROPS", 50)
    picture = torch.arange(256, dtype=torch.uint8).expand(3, 96, 256).contiguous()
    clips, _ = photographs.Crops(ORIGIN, [picture]).draw(40, 16, 3, torch.Generator().manual_seed(2))
    assert clips.shape == (40, 3, 3, 16, 16)
    at = (clips[:, 0].mean(dim=(2, 3)) + 1) * 127.5
    first, second = at[:, 1] - at[:, 0], at[:, 2] - at[:, 1]
    torch.testing.assert_close(first, second, atol=0.6, rtol=0)
    assert (first.abs() > 1).float().mean() > 0.5


def test_a_clip_does_not_run_on_into_another_episode():
    """Frame n of the recording has the value n; frame 5 begins an episode."""
    frames = torch.arange(10, dtype=torch.uint8).view(1, 10, 1, 1, 1).expand(1, 10, 8, 8, 3).contiguous()
    goes_on = torch.ones(1, 10, dtype=torch.bool)
    goes_on[0, 5] = False
    source = games.Clips(ORIGIN, {"a game": (frames, goes_on)}, apart=2)
    clips, _ = source.draw(200, 8, 3, torch.Generator().manual_seed(0))
    assert clips.shape == (200, 3, 3, 8, 8)
    values = ((clips[:, 0, :, 0, 0] + 1) * 127.5).round().long()
    assert (values.diff(dim=1) == 2).all()
    assert all(clip[-1] < 5 or clip[0] >= 5 for clip in values.tolist())


# --- Networks ---------------------------------------------------------------------------------------------------------


def test_the_zoo_is_as_varied_as_it_is_meant_to_be():
    families = [spec.family for spec in ZOO.values()]
    assert families.count("FLUX") >= 2
    assert families.count("DiT") >= 2
    assert {"HunyuanVideo", "Wan", "Cosmos 1"} <= set(families)
    assert len({spec.source for spec in ZOO.values()}) >= SOURCES_FOR_THE_ZOO
    assert sum(spec.size == 64 for spec in ZOO.values()) >= 2
    assert any(spec.model_class == "DiT" and spec.unet["depth"] == spec.depth for spec in ZOO.values())


@pytest.fixture
def build(comfy):
    from zoo import build

    return build


@specs
def test_a_network_is_wide_enough_for_the_noise_in_a_patch(name):
    """Noise has no structure: what predicts it needs as many numbers for a patch as the patch has pixels and channels,
    or noise stays in every picture."""
    unet = ZOO[name].unet
    patch = unet.get("patch_size", unet.get("patch_spatial", 1 if ZOO[name].model_class == "LTXV" else 2))
    height, width = (patch, patch) if isinstance(patch, int) else patch[-2:]
    wide = unet.get("hidden_size") or unet.get("dim") or unet.get("model_channels")
    wide = wide or unet["attention_head_dim"] * unet["num_attention_heads"]
    assert ZOO[name].channels * height * width < wide


@specs
def test_latents_are_the_pictures_folded(build, name):
    spec = ZOO[name]
    shape = (2, 3, spec.frames, spec.size, spec.size) if spec.frames else (2, 3, spec.size, spec.size)
    pictures = torch.randn(shape)
    latents = build.to_latent(spec, pictures)
    assert latents.shape == (2, *spec.latent_shape)
    assert latents.norm().item() == pytest.approx(pictures.norm().item(), rel=1e-5)
    assert torch.equal(build.to_pictures(spec, latents), pictures)


@specs
def test_a_class_is_what_a_text_encoder_gives(build, name):
    """`pooled_output` is named, be it None: some versions of a network ask for it (Lumina 2 in ComfyUI 0.4)."""
    if ZOO[name].model_class == "DiT":
        pytest.skip("a DiT takes the class's number")
    ((context, further),) = build.Condition(ZOO[name], 5)(torch.tensor([0, 5]))
    assert len(context) == 2
    assert (further["pooled_output"] is None) == (not ZOO[name].pooled)


@specs
def test_every_network_learns_and_fits_into_its_file(build, name):
    """Two steps of training change the loss and leave every number finite; in half precision it is small enough."""
    from zoo import train
    from zoo.training.loop import differentiable, initialise, keep_inputs

    spec = ZOO[name]
    base = build.model_of(spec, 5)
    network = base.diffusion_model.requires_grad_(True)
    network.initialize_weights() if spec.model_class == "DiT" else initialise(network, spec.zero, 0)
    keep_inputs(network)
    model = torch.nn.ModuleDict({"diffusion_model": network, "condition": build.Condition(spec, 5)})
    assert 2 * sum(p.numel() for p in model.parameters()) < LARGEST_FILE

    latent = torch.randn(2, *spec.latent_shape, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        generator = torch.Generator().manual_seed(1)
        with differentiable():
            loss = train.loss(spec, base, model["condition"], latent, torch.tensor([0, 5]), generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in model.parameters())


def test_noise_levels_are_the_schedules_and_most_are_in_its_middle(build):
    from zoo import train

    for name in ("flux-fluent", "dit-clipart", "cosmos-fluent"):
        spec = ZOO[name]
        sampling = build.model_of(spec, 2).model_sampling
        sigmas = train.noise_levels(4000, sampling, spec.noise_mean, torch.Generator().manual_seed(0))
        assert float(sampling.sigma_min) <= sigmas.min()
        assert sigmas.max() <= float(sampling.sigma_max)
        ratio = sigmas / (1 - sigmas) if train.is_flow(sampling) else sigmas
        assert ratio.log().median().item() == pytest.approx(spec.noise_mean, abs=0.2)


# --- What is trained --------------------------------------------------------------------------------------------------


@specs
def test_a_trained_model_samples_and_speculates(build, name):
    if not build.path_of(name).is_file():
        pytest.skip(f"{name} is not trained yet")
    from measure.sampling import Case, batch_of, sample
    from measure.subjects import load
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    assert build.path_of(name).stat().st_size < LARGEST_FILE
    assert build.path_of(name).with_suffix(".png").is_file()
    assert "Difficulty" in build.path_of(name).with_suffix(".md").read_text()
    subject = load(name)
    case, batch = Case(12), batch_of(subject, 2)
    plain = sample(subject.patcher, subject, case, batch).latents
    pictures = subject.picture(plain)
    assert pictures.isfinite().all()
    assert pictures.std() > 0.05
    patched = attach(subject.patcher, SpeCaConfig(threshold=0.2))
    fast = sample(patched, subject, case, batch).latents
    # A call counts as its dearest sample's outcome, and each sample goes its own way.
    calls = attachment_of(patched).run_of().calls
    assert {row.sample for call in calls for row in call.rows if row.skipped} == {0, 1}
    assert ((fast - plain).norm() / plain.norm()).item() < 0.5
