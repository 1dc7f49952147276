"""What a user installs, by `git archive` or from the registry: the pack, the demo and its model, and no benchmark."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

import comfy_env

ROOT = comfy_env.ROOT
KEPT_OF_BENCHMARKS = ("benchmarks/zoo/demo/", "benchmarks/zoo/emoji_pack/", "benchmarks/zoo/models/flux-emoji.")

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed state as a user unpacks it."""
    folder = tmp_path_factory.mktemp("archive")
    file = folder / "speca.tar"
    file.write_bytes(git("archive", "HEAD"))
    with tarfile.open(file) as archive:
        archive.extractall(folder / "speca", filter="data")
    return folder / "speca"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_archive_holds_all_but_the_benchmark_and_its_models(unpacked: Path) -> None:
    committed = set(git("ls-tree", "-r", "-z", "--name-only", "HEAD").decode().split("\0")) - {""}
    outside = {name for name in committed if not name.startswith("benchmarks/")}
    needed = {name for name in committed if name.startswith(KEPT_OF_BENCHMARKS)}
    assert files_of(unpacked) == outside | needed
    models = [path.name for path in unpacked.rglob("*.safetensors")]
    assert models == ["flux-emoji.safetensors"]


@pytest.mark.filterwarnings("ignore:GitWildMatch")
def test_the_registry_serves_the_same_files(unpacked: Path) -> None:
    """Its tool takes the tracked files that `.comfyignore` does not match; the last pattern wins."""
    pathspec = pytest.importorskip("pathspec")
    spec = pathspec.PathSpec.from_lines("gitwildmatch", git("show", "HEAD:.comfyignore").decode().splitlines())
    committed = set(git("ls-tree", "-r", "-z", "--name-only", "HEAD").decode().split("\0")) - {""}
    assert {name for name in committed if not spec.match_file(name)} == files_of(unpacked)


def _module(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(file.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.comfy
def test_the_demo_finds_all_it_needs_in_an_archive(unpacked: Path, comfy: None) -> None:
    import asyncio

    dev = _module("dev_of_the_archive", unpacked / "dev.py")
    assert dev.ENVIRONMENT_PINS.is_file()
    assert all((folder / "__init__.py").is_file() for folder in dev.DEMO_PACKS.values())
    pack = _module("emoji_of_the_archive", dev.DEMO_PACKS["speca_emoji_demo"] / "__init__.py")
    extension = asyncio.run(pack.comfy_entrypoint())
    names = {node.define_schema().node_id for node in asyncio.run(extension.get_node_list())}
    assert "SpeCaDemoLoadFlux" in names
    assert "SpeCaDemoLoadHunyuanVideo" not in names, "its model is not there"
    assert len(sys.modules["emoji_of_the_archive.models"].load_flux().model.speca_emoji.classes) == 48


def test_an_archive_says_that_the_benchmark_is_not_in_it(unpacked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dev = _module("dev_of_the_archive", unpacked / "dev.py")
    for command in (["bench"], ["study", "sensitivity"], ["train", "flux"]):
        assert dev.main(command) == 1
        assert "clone the repository" in capsys.readouterr().out
