"""Reading DiT files: every layout and size, and a clear word about everything else."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import comfy_env

if comfy_env.comfyui_path() is None:
    pytest.skip("no ComfyUI", allow_module_level=True)

import dit_helpers
from dit_helpers import TINY
from speca.dit.checkpoint import CheckpointError, DiTConfig, heads_for, parse_checkpoint, read_checkpoint
from speca.dit.model import DiT

pytestmark = pytest.mark.comfy

PAPER = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dit_helpers.authors_state_dict()


def same_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    wanted = {key: value for key, value in expected.items() if key != "pos_embed"}
    return actual.keys() == wanted.keys() and all(torch.equal(actual[key], wanted[key]) for key in wanted)


def shapes_only(config: DiTConfig) -> dict[str, torch.Tensor]:
    """The authors' file of this network without its gigabytes: shapes are all that is looked at."""
    network = DiT(**asdict(config), device="meta", operations=torch.nn)
    return dict(network.state_dict())


def diffusers_shapes(config: DiTConfig) -> dict[str, torch.Tensor]:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=config.num_heads,
            attention_head_dim=config.hidden_size // config.num_heads,
            out_channels=8,
            num_layers=config.depth,
            sample_size=config.input_size,
            patch_size=config.patch_size,
        )
    # torch.equal, which compares the copies of the embedders, needs real storage: zeros that take no memory
    return {key: torch.zeros(1).expand(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize(("size", "patch"), list(itertools.product(PAPER, (2, 4, 8))))
@pytest.mark.parametrize("layout", [shapes_only, diffusers_shapes])
def test_every_size_of_the_paper_is_told_from_its_shapes(size: str, patch: int, layout) -> None:
    depth, width, heads = PAPER[size]
    config = DiTConfig(32, patch, 4, width, depth, heads, 4.0, 1000, True)
    found = parse_checkpoint(layout(config), None, "file").config
    # neither layout holds a position table here, and without one no file says its size
    assert found == replace(config, input_size=None)
    assert found.name == f"DiT-{size}/{patch}"


@pytest.mark.parametrize("side", [256, 512])
def test_the_position_table_tells_the_input_size(side: int) -> None:
    config = DiTConfig(side // 8, 4, 4, 384, 1, 6, 4.0, 1000, True)
    state_dict = {**shapes_only(config), "pos_embed": dit_helpers.authors_table(config)}
    assert parse_checkpoint(state_dict, None, "file").config == config


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, learn_sigma=False),
        replace(TINY, in_channels=3, input_size=32, patch_size=4),
        replace(TINY, in_channels=3, learn_sigma=False),
        replace(TINY, num_classes=1),
        replace(TINY, mlp_ratio=2.5),
    ],
)
def test_other_shapes(config: DiTConfig) -> None:
    found = parse_checkpoint(dit_helpers.authors_state_dict(config), dit_helpers.header(config), "file")
    assert found.config == config


def test_heads_of_other_widths() -> None:
    assert [heads_for(width) for width in (384, 768, 1024, 1152)] == [6, 12, 16, 16]
    assert (heads_for(512), heads_for(64), heads_for(96), heads_for(32)) == (8, 1, 2, 1)


def test_the_header_decides_about_heads(weights) -> None:
    for header in ({"num_heads": "2"}, {"heads": "2"}, {"config": json.dumps({"num_attention_heads": 2})}):
        assert parse_checkpoint(weights, header, "file").config.num_heads == 2
    with pytest.raises(CheckpointError, match="states 7 heads, which do not divide its hidden size of 64"):
        parse_checkpoint(weights, {"num_heads": "7"}, "file")


def test_guessed_heads_are_announced(weights, caplog: pytest.LogCaptureFixture) -> None:
    assert parse_checkpoint(weights, None, "file").config.num_heads == 1
    assert "does not say how many attention heads" in caplog.text


def test_class_names_come_from_the_header(weights, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"class {i}" for i in range(10)]
    header = {**dit_helpers.header(), "class_names": json.dumps(names)}
    assert parse_checkpoint(weights, header, "file").class_names == tuple(names)
    nested = {"config": json.dumps({"num_heads": 4, "class_names": names})}
    assert parse_checkpoint(weights, nested, "file").class_names == tuple(names)
    header["class_names"] = json.dumps(names[:5])
    assert parse_checkpoint(weights, header, "file").class_names is None
    assert "there should be a list of 10" in caplog.text


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "module.", "_orig_mod."])
def test_safetensors(tmp_path: Path, weights, prefix: str) -> None:
    path = tmp_path / "dit.safetensors"
    save_file({prefix + key: value for key, value in weights.items()}, path, metadata=dit_helpers.header())
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == TINY
    assert same_weights(checkpoint.state_dict, weights)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"ema": w},
        lambda w: {"model": w},
        lambda w: {"state_dict": {"module." + key: value for key, value in w.items()}},
        # what the authors' train.py saves
        lambda w: {
            "model": {key: value + 1 for key, value in w.items()},
            "ema": w,
            "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]},
            "args": argparse.Namespace(model="DiT-S/2", image_size=256),
        },
    ],
    ids=["plain", "ema", "model", "state_dict", "training"],
)
def test_pt_files(tmp_path: Path, weights, wrap, legacy: bool) -> None:
    path = tmp_path / "DiT-XL-2-256x256.pt"
    torch.save(wrap(weights), path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert same_weights(checkpoint.state_dict, weights)
    assert checkpoint.config == replace(TINY, num_heads=1)  # a .pt file has no header


def test_diffusers_and_the_authors_layout_are_the_same_network(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    theirs = dit_helpers.diffusers_network()
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(theirs.state_dict(), path, metadata=dit_helpers.header())
    converted = read_checkpoint(path)
    again = parse_checkpoint(converted.state_dict, dit_helpers.header(), "file")
    assert converted.config == again.config == replace(TINY, input_size=None)
    assert same_weights(again.state_dict, converted.state_dict)


def test_diffusers_blocks_with_embedders_of_their_own_are_refused() -> None:
    pytest.importorskip("diffusers")
    state_dict = dit_helpers.diffusers_network().state_dict()
    state_dict["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"] += 1
    with pytest.raises(CheckpointError, match=r"own 'norm1.emb.class_embedder.embedding_table', and they differ"):
        parse_checkpoint(state_dict, dit_helpers.header(), "file")


class Malicious:
    """Runs a command when unpickled without restriction."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"echo run > '{self.target}'",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, weights, legacy: bool) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / "DiT-evil.pt"
    torch.save({"ema": weights, "extra": Malicious(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        CheckpointError, match=r"DiT-evil.pt was refused: loading it would call Python's '(posix|nt)\.system'"
    ):
        read_checkpoint(path)
    assert not trace.exists()
    # the file would have done it
    torch.load(path, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize("name", ["flux", "pixart_alpha", "sd3", "auraflow", "hunyuan_dit", "sd15"])
def test_other_models_are_named_as_what_they_lack(name: str) -> None:
    import tiny_models

    patcher = tiny_models.build(name)[0]
    found = patcher.model.diffusion_model.state_dict()
    with pytest.raises(CheckpointError) as error:
        parse_checkpoint(found, None, f"{name}.safetensors")
    message = str(error.value)
    assert f"{name}.safetensors is not a DiT: its {len(found)} tensors" in message
    assert next(iter(found)).split(".")[0] in message
    assert "lack '" in message
    assert "Load Diffusion Model" in message


def without(weights: dict, *keys: str) -> dict:
    return {key: value for key, value in weights.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, "holds a dict of nothing, but no tensors"),
        (lambda w: {"weights": w}, "holds a dict of 'weights', but no tensors, neither directly nor under 'ema'"),
        (lambda w: [1, 2], "holds a list"),
        (lambda w: without(w, "y_embedder.embedding_table.weight"), "lack 'y_embedder.embedding_table.weight'"),
        (lambda w: without(w, "blocks.1.mlp.fc2.bias"), "missing: 'blocks.1.mlp.fc2.bias'"),
        (lambda w: {**w, "blocks.0.cross.q.weight": w["pos_embed"]}, "not part of a DiT: 'blocks.0.cross.q.weight'"),
        (
            lambda w: {**w, "blocks.2.attn.proj.bias": torch.zeros(63)},
            r"'blocks.2.attn.proj.bias' is \(63,\) instead of",
        ),
        (lambda w: {**w, "final_layer.linear.weight": torch.zeros(13, 64)}, "puts out 13 values for a patch of 2 x 2"),
        (lambda w: {**w, "t_embedder.mlp.0.weight": torch.zeros(64, 128)}, r"a DiT's is \(hidden size, 256\)"),
        (lambda w: {**w, "x_embedder.proj.weight": torch.zeros(64, 16)}, r"has the shape \(64, 16\)"),
        (lambda w: {**w, "pos_embed": w["pos_embed"] + 1}, "position table 'pos_embed'"),
        (lambda w: {**w, "pos_embed": w["pos_embed"][:, :15]}, "position table 'pos_embed'"),
    ],
)
def test_what_is_wrong_is_said(weights, change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_checkpoint(change(weights), dit_helpers.header(), "file")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"],
    ids=["empty", "zeros", "pointer"],
)
def test_broken_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"broken{suffix} cannot be read as a"):
        read_checkpoint(path)


def test_a_truncated_pt_file_is_named(tmp_path: Path, weights) -> None:
    path = tmp_path / "half.pt"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"half\.pt cannot be read as a PyTorch file"):
        read_checkpoint(path)
