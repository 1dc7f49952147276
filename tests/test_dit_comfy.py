"""DiT as a ComfyUI model: schedule, sampling, LoRA, offloading, and the nodes in a real graph."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import comfy_env

if comfy_env.comfyui_path() is None:
    pytest.skip("no ComfyUI", allow_module_level=True)

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd

import dit_helpers
from dit_helpers import TINY
from speca.dit.checkpoint import CheckpointError, parse_checkpoint, read_checkpoint
from speca.dit.comfy_model import (
    choose_labels,
    class_conditioning,
    dit_of,
    empty_latent,
    load_dit,
    patcher_from_checkpoint,
)
from speca.dit.labels import UnknownClassError

pytestmark = pytest.mark.comfy

PIXELS = replace(TINY, in_channels=3, input_size=16, patch_size=4, learn_sigma=False)
NULL = class_conditioning([-1])


def noise_for(patcher: Any, batch: int, seed: int = 7) -> torch.Tensor:
    return comfy.sample.prepare_noise(empty_latent(dit_of(patcher), batch)["samples"], seed)


def sample(
    patcher: Any, labels: list[int], noise: torch.Tensor, cfg: float = 3.0, steps: int = 4, sampler: str = "euler"
) -> torch.Tensor:
    return comfy.sample.sample(
        patcher,
        noise,
        steps,
        cfg,
        sampler,
        "normal",
        class_conditioning(labels),
        NULL,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=1,
    )


def test_the_schedule_is_the_authors() -> None:
    sampling = dit_helpers.patcher().model.model_sampling
    # gaussian_diffusion.py of the authors: get_named_beta_schedule("linear", 1000), alphas_cumprod
    alphas_cumprod = np.cumprod(1.0 - np.linspace(1e-4, 2e-2, 1000, dtype=np.float64))
    ours = 1.0 / (1.0 + sampling.sigmas.double().numpy() ** 2)
    np.testing.assert_allclose(ours, alphas_cumprod, rtol=2e-7)
    timesteps = torch.tensor([0, 1, 500, 999])
    assert torch.equal(sampling.timestep(sampling.sigmas[timesteps]), timesteps)


@pytest.mark.parametrize("config", [TINY, PIXELS], ids=["latent", "pixels"])
def test_sampling_equals_ddim_on_diffusers_network(config) -> None:
    """The whole chain at once: noise scaling, timesteps, labels, guidance, variance split off, latent scale."""
    diffusers = pytest.importorskip("diffusers")
    theirs = dit_helpers.diffusers_network(config)
    weights = parse_checkpoint(theirs.state_dict(), dit_helpers.header(config), "file")
    patcher = patcher_from_checkpoint(
        replace(weights, config=replace(weights.config, input_size=config.input_size)), "file", torch.float32
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=2e-2, beta_schedule="linear", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)  # 900, 800, ..., 0
    labels, null, cfg = torch.tensor([3, 8]), torch.full((2,), config.num_classes), 2.5
    noise = noise_for(patcher, 2)

    sigmas = patcher.model.model_sampling.sigmas[scheduler.timesteps]
    ours = comfy.sample.sample_custom(
        patcher,
        noise,
        cfg,
        comfy.samplers.sampler_object("euler"),  # on sigmas, an euler step is DDIM's
        torch.cat([sigmas, torch.zeros(1)]),
        class_conditioning(labels.tolist()),
        NULL,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=1,
    )

    x = noise * sigmas[0] / (1 + sigmas[0] ** 2).sqrt()
    for t in scheduler.timesteps:
        with torch.no_grad():
            time = t.expand(2)
            conditional = theirs(x, timestep=time, class_labels=labels).sample[:, : config.in_channels]
            unconditional = theirs(x, timestep=time, class_labels=null).sample[:, : config.in_channels]
        x = scheduler.step(unconditional + cfg * (conditional - unconditional), t, x).prev_sample
    scale = 0.18215 if config.in_channels == 4 else 1.0
    assert x.std() > 0.1
    torch.testing.assert_close(ours * scale, x, rtol=1e-3, atol=1e-3 * float(x.std()))


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_a_batch_of_labels_is_each_label_alone(cfg: float, sampler: str) -> None:
    patcher = dit_helpers.patcher()
    labels = [2, 7, 7, 0]
    noise = noise_for(patcher, 4)
    together = sample(patcher, labels, noise, cfg, sampler=sampler)
    assert together.isfinite().all()
    for i, label in enumerate(labels):
        alone = sample(patcher, [label], noise[i : i + 1], cfg, sampler=sampler)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4 * float(alone.std()))
    # another label makes another picture
    other = sample(patcher, [3], noise[:1], cfg, sampler=sampler)
    assert (other - together[:1]).abs().max() > 1e-2 * together.std()


def test_a_bigger_batch_starts_the_labels_over() -> None:
    patcher = dit_helpers.patcher()
    noise = noise_for(patcher, 3)
    assert torch.equal(sample(patcher, [2, 7], noise), sample(patcher, [2, 7, 2], noise))


def test_guidance_is_on_only_above_one() -> None:
    patcher = dit_helpers.patcher()
    noise = noise_for(patcher, 1)
    batches: list[int] = []
    handle = patcher.model.diffusion_model.register_forward_pre_hook(lambda _, args: batches.append(args[0].shape[0]))
    plain = sample(patcher, [2], noise, cfg=1.0)
    guided = sample(patcher, [2], noise, cfg=3.0)
    handle.remove()
    assert batches == [1] * 4 + [2] * 4
    assert not torch.allclose(plain, guided)


def test_zeroed_conditioning_is_the_null_class() -> None:
    import nodes

    patcher = dit_helpers.patcher()
    zeroed = nodes.ConditioningZeroOut().zero_out(class_conditioning([2]))[0]
    noise = noise_for(patcher, 1)
    run = lambda positive: comfy.sample.sample(  # noqa: E731
        patcher, noise, 2, 1.0, "euler", "normal", positive, NULL, torch.zeros_like(noise), disable_pbar=True, seed=1
    )
    assert torch.equal(run(zeroed), run(NULL))
    assert not torch.equal(run(zeroed), run(class_conditioning([2])))


def test_a_text_prompt_and_a_foreign_label_are_explained() -> None:
    patcher = dit_helpers.patcher()
    noise = noise_for(patcher, 1)
    prompt = [[torch.randn(1, 77, 768), {"pooled_output": torch.randn(1, 768)}]]
    with pytest.raises(ValueError, match="Connect 'DiT Class Label' to both positive and negative"):
        comfy.sample.sample(
            patcher, noise, 2, 1.0, "euler", "normal", prompt, prompt, torch.zeros_like(noise), disable_pbar=True
        )
    with pytest.raises(ValueError, match="no class 10: this model's classes are numbered 0 to 9"):
        sample(patcher, [10], noise)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_other_weight_types_are_near(dtype: torch.dtype) -> None:
    exact = dit_helpers.patcher()
    coarse = dit_helpers.patcher(dtype=dtype)
    assert coarse.model.diffusion_model.blocks[0].attn.qkv.weight.dtype == dtype
    noise = noise_for(exact, 1)
    difference = sample(coarse, [2], noise, 1.0) - sample(exact, [2], noise, 1.0)
    assert 0 < difference.std() < (0.5 if dtype == torch.float8_e4m3fn else 0.05) * sample(exact, [2], noise, 1.0).std()


LORA_TARGETS = ("blocks.0.attn.qkv", "blocks.2.mlp.fc1", "blocks.1.adaLN_modulation.1", "final_layer.linear")


def make_lora(network: torch.nn.Module, style: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    lora: dict[str, torch.Tensor] = {}
    for target in LORA_TARGETS:
        rows, columns = network.get_parameter(f"{target}.weight").shape
        down = torch.randn(2, columns, generator=generator) / columns**0.5
        up = torch.randn(rows, 2, generator=generator)
        if style == "kohya":
            key = "lora_unet_" + target.replace(".", "_")
            lora |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)}
        else:
            key = f"diffusion_model.{target}"
            lora |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    return lora


@pytest.mark.parametrize("style", ["kohya", "peft"])
def test_a_lora_does_what_merging_it_does(style: str) -> None:
    patcher = dit_helpers.patcher()
    noise = noise_for(patcher, 1)
    before = sample(patcher, [2], noise)
    lora = make_lora(patcher.model.diffusion_model, style)
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 0.5, 0.0)
    assert len(patched.patches) == len(LORA_TARGETS)
    with_lora = sample(patched, [2], noise)

    merged = dit_helpers.patcher()
    up, down = ("lora_up", "lora_down") if style == "kohya" else ("lora_B", "lora_A")
    for target in LORA_TARGETS:
        key = "lora_unet_" + target.replace(".", "_") if style == "kohya" else f"diffusion_model.{target}"
        weight = merged.model.diffusion_model.get_parameter(f"{target}.weight")
        weight.data += 0.5 * lora[f"{key}.{up}.weight"] @ lora[f"{key}.{down}.weight"]
    torch.testing.assert_close(with_lora, sample(merged, [2], noise), rtol=1e-4, atol=1e-4 * float(before.std()))
    assert (with_lora - before).std() > 0.05 * before.std()
    assert torch.equal(sample(patcher, [2], noise), before)


@pytest.mark.parametrize("with_lora", [False, True])
def test_offloaded_weights_give_the_same_picture(with_lora: bool) -> None:
    """ComfyUI's low memory path: most layers fetch their weights, and apply their LoRA, when they are called."""
    device = torch.device("cpu")

    def prepared(lowvram: bool) -> Any:
        patcher = dit_helpers.patcher()
        if with_lora:
            patcher, _ = comfy.sd.load_lora_for_models(
                patcher, None, make_lora(patcher.model.diffusion_model, "peft"), 1, 0
            )
        patcher.load(device, lowvram_model_memory=1 if lowvram else 0, full_load=not lowvram)
        return patcher

    generator = torch.Generator().manual_seed(1)
    x, t, y = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([900, 10]), torch.tensor([1, 10])
    whole, partly = prepared(False).model, prepared(True).model
    fetching = [m for m in partly.diffusion_model.modules() if getattr(m, "comfy_cast_weights", False)]
    assert len(fetching) >= 4 * TINY.depth
    assert not any(getattr(m, "comfy_cast_weights", False) for m in whole.diffusion_model.modules())
    with torch.no_grad():
        expected, actual = whole.diffusion_model(x, t, y=y), partly.diffusion_model(x, t, y=y)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_memory_estimate_grows_with_size_and_width() -> None:
    small, wide = dit_helpers.patcher().model, dit_helpers.patcher(replace(TINY, hidden_size=128)).model
    assert wide.memory_required([1, 4, 8, 8]) == 2 * small.memory_required([1, 4, 8, 8])
    assert small.memory_required([2, 4, 8, 8]) == 2 * small.memory_required([1, 4, 8, 8])


def test_saved_by_comfyui_and_loaded_again(tmp_path: Path) -> None:
    """ComfyUI's "ModelSave" writes no header of ours, yet heads, size and names must survive."""
    names = [f"emoji {i}" for i in range(10)]
    patcher = dit_helpers.patcher(class_names=json.dumps(names))
    path = tmp_path / "saved.safetensors"
    comfy.sd.save_checkpoint(str(path), patcher)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == TINY
    assert checkpoint.class_names == tuple(names)
    noise = noise_for(patcher, 1)
    assert torch.equal(sample(load_dit(path, torch.float32), [2], noise), sample(patcher, [2], noise))


def test_other_latent_spaces_are_refused() -> None:
    config = replace(TINY, in_channels=16)
    checkpoint = parse_checkpoint(dit_helpers.authors_state_dict(config), dit_helpers.header(), "wide.safetensors")
    with pytest.raises(CheckpointError, match=r"wide.safetensors is a DiT-3x64/2 for 16 channels. Supported are 4"):
        patcher_from_checkpoint(checkpoint, "wide.safetensors")


@pytest.mark.parametrize(
    ("config", "size", "shape"),
    [
        (TINY, {}, (2, 4, 8, 8)),
        (TINY, {"width": 128, "height": 96}, (2, 4, 12, 16)),
        (TINY, {"height": 4}, (2, 4, 1, 8)),
        (PIXELS, {}, (2, 3, 16, 16)),
        (PIXELS, {"width": 24}, (2, 3, 16, 24)),
    ],
)
def test_empty_latents(config, size: dict[str, int], shape: tuple[int, ...]) -> None:
    assert empty_latent(dit_of(dit_helpers.patcher(config)), 2, **size)["samples"].shape == shape


def test_choosing_a_class() -> None:
    listed = "207: golden retriever"
    own_names = dit_of(dit_helpers.patcher(class_names=json.dumps([f"emoji {i}" for i in range(10)])))
    nameless = dit_of(dit_helpers.patcher())
    imagenet = dit_of(dit_helpers.patcher(replace(TINY, num_classes=1000)))
    assert choose_labels("", listed, None) == choose_labels(" ", listed, imagenet) == [207]
    assert choose_labels("macaw, 3", listed, None) == choose_labels("macaw, 3", listed, imagenet) == [88, 3]
    assert choose_labels("emoji 3, 4", listed, own_names) == [3, 4]
    assert choose_labels("5", listed, nameless) == [5]
    with pytest.raises(
        UnknownClassError, match=r"Type a number from 0 to 9 or a name into 'classes', such as 'emoji 0'"
    ):
        choose_labels("", listed, own_names)
    with pytest.raises(UnknownClassError, match=r"Type a number from 0 to 9 into 'classes'\."):
        choose_labels("", listed, nameless)


def test_another_model_is_refused_by_name() -> None:
    import tiny_models

    with pytest.raises(
        ValueError, match=r"works with a DiT only, but the model is a Flux\. Connect the MODEL of 'Load DiT'"
    ):
        dit_of(tiny_models.build("flux")[0])


# The nodes


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder whose files 'Load DiT' lists."""
    import folder_paths

    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    yield tmp_path
    folder_paths.folder_names_and_paths["diffusion_models"][0].remove(str(tmp_path))


def graph(file: str, classes: str, seed: int = 1) -> dict[str, Any]:
    return {
        "load": {"class_type": "SpeCaDiTLoader", "inputs": {"model_name": file, "weight_dtype": "fp32"}},
        "class": {
            "class_type": "SpeCaDiTClass",
            "inputs": {"imagenet_class": "207: golden retriever", "classes": classes, "model": ["load", 0]},
        },
        "latent": {
            "class_type": "SpeCaDiTLatent",
            "inputs": {"model": ["load", 0], "batch_size": ["class", 2], "width": 0, "height": 0},
        },
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["load", 0],
                "positive": ["class", 0],
                "negative": ["class", 1],
                "latent_image": ["latent", 0],
                "seed": seed,
                "steps": 3,
                "cfg": 2.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["vae", 0]}},
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }


def test_the_nodes_make_pictures_in_a_real_graph(graphs: comfy_env.Graphs, models: Path) -> None:
    import folder_paths
    from PIL import Image

    names = json.dumps([f"emoji {i}" for i in range(10)])
    header = {**dit_helpers.header(PIXELS), "class_names": names}
    save_file(dit_helpers.authors_state_dict(PIXELS), models / "emoji-dit.safetensors", metadata=header)
    result = graphs.run(graph("emoji-dit.safetensors", "emoji 3, 7"))
    assert result.success, result.error
    images = result.outputs["preview"]["images"]
    assert len(images) == 2
    first = Image.open(Path(folder_paths.get_temp_directory()) / images[0]["subfolder"] / images[0]["filename"])
    assert first.size == (16, 16)
    assert np.asarray(first).std() > 1


def test_a_trained_dit_is_in_the_list_out_of_the_box(graphs: comfy_env.Graphs) -> None:
    """The shipped one draws a red heart: its middle is red, its corners are nearly white."""
    import folder_paths
    from PIL import Image

    shipped = "dit-emoji (comes with SpeCa)"
    assert shipped in graphs.node_classes["SpeCaDiTLoader"].INPUT_TYPES()["required"]["model_name"][1]["options"]
    nodes = graph(shipped, "red heart", seed=3)
    nodes["sample"]["inputs"] |= {"steps": 20, "scheduler": "simple"}
    result = graphs.run(nodes)
    assert result.success, result.error
    (image,) = result.outputs["preview"]["images"]
    pixels = np.asarray(Image.open(Path(folder_paths.get_temp_directory()) / image["subfolder"] / image["filename"]))
    red, green, blue = pixels[12:20, 12:20].reshape(-1, 3).mean(axis=0)
    assert red > max(green, blue) + 60
    assert pixels[:3, :3].mean() > 200


@pytest.mark.parametrize(
    ("classes", "message"),
    [("", "Type a number from 0 to 9"), ("emoji 33", r"emoji 3 \(3\)"), ("10", "numbered 0 to 9")],
)
def test_a_wrong_class_ends_the_graph_with_a_hint(graphs, models: Path, classes: str, message: str) -> None:
    names = json.dumps([f"emoji {i}" for i in range(10)])
    header = {**dit_helpers.header(PIXELS), "class_names": names}
    save_file(dit_helpers.authors_state_dict(PIXELS), models / "emoji-dit.safetensors", metadata=header)
    result = graphs.run(graph("emoji-dit.safetensors", classes))
    assert not result.success
    assert result.error["node_id"] == "class"
    with pytest.raises(UnknownClassError, match=message):
        raise UnknownClassError(result.error["exception_message"])


def test_a_file_that_is_no_dit_ends_the_graph_with_what_it_lacks(graphs: comfy_env.Graphs, models: Path) -> None:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, models / "flux.safetensors")
    result = graphs.run(graph("flux.safetensors", "1"))
    assert not result.success
    assert result.error["node_id"] == "load"
    assert "flux.safetensors is not a DiT" in result.error["exception_message"]
    assert "double_blocks.0.img_attn.qkv.weight" in result.error["exception_message"]


def test_the_nodes_describe_themselves(graphs: comfy_env.Graphs) -> None:
    for name in ("SpeCaDiTLoader", "SpeCaDiTClass", "SpeCaDiTLatent"):
        node = graphs.node_classes[name]
        schema = node.GET_SCHEMA()
        described = [*schema.inputs, *schema.outputs]
        assert schema.description
        assert [entry.id for entry in described if not entry.tooltip] == []
        info = node.GET_NODE_INFO_V1()
        assert json.loads(json.dumps(info))["category"] == "SpeCa/DiT"
    offered = graphs.node_classes["SpeCaDiTClass"].INPUT_TYPES()["optional"]["imagenet_class"]
    assert len(offered[1]["options"]) == 1000
    assert sys.getsizeof(json.dumps(offered)) < 50_000
