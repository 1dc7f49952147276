"""Fixtures around a real ComfyUI.

Run with `python dev.py test [pytest arguments]`. Without ComfyUI (see `comfy_env.comfyui_path`) the tests of pure
parts run; the rest skip and say so. A test that needs ComfyUI asks for `comfy` (imports work, models can be built),
`graphs` (real PromptExecutor in this process) or `server` (real server process), or its module says
`pytestmark = pytest.mark.comfy`.
"""

from __future__ import annotations

import os

# Before torch is imported: on shared cores one thread is several times faster for tiny models, and results differ in
# the last digits between thread counts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import hypothesis

import browsers
import comfy_env
import comfy_server

# Slow on a busy machine is not wrong.
hypothesis.settings.register_profile(
    "speca", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize="CI" in os.environ
)
hypothesis.settings.load_profile("speca")

NO_COMFYUI = "no ComfyUI: run `python dev.py setup`, or set COMFYUI_PATH"
NO_CUDA = "no CUDA device"
COMFY_FIXTURES = {"comfy", "emoji", "graphs", "server", "_graphs"}

_available = {"comfyui": False}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="run ComfyUI on the CUDA device instead of the CPU")
    parser.addoption("--full", action="store_true", help="also what takes an hour; its tables go to benchmarks/results")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "comfy: needs a real ComfyUI; skipped where there is none")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none or without --gpu")
    config.addinivalue_line("markers", "full: takes long; left out without --full")
    gpu = config.getoption("--gpu")
    if gpu and not torch.cuda.is_available():
        raise pytest.UsageError(f"--gpu was given, but there is {NO_CUDA}")
    torch.set_num_threads(1)
    _available["comfyui"] = comfy_env.prepare(gpu=gpu)


def pytest_report_header(config: pytest.Config) -> str:
    where = comfy_env.comfyui_path()
    if where is None:
        return f"ComfyUI: NONE ({NO_COMFYUI})"
    import comfyui_version

    return f"ComfyUI: {comfyui_version.__version__} in {where}; torch {torch.__version__}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long = [] if config.getoption("--full") else [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in set(long)]
    for item in items:
        needs_comfy = item.get_closest_marker("comfy") or COMFY_FIXTURES & set(getattr(item, "fixturenames", ()))
        if needs_comfy and not _available["comfyui"]:
            item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))
        if item.get_closest_marker("gpu"):
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=NO_CUDA))
            elif not config.getoption("--gpu"):
                item.add_marker(pytest.mark.skip(reason="runs with --gpu only"))


@pytest.fixture(autouse=True)
def _warnings_are_logged() -> None:
    """The benchmark says errors only, and a process that runs its tests runs others after them."""
    root = logging.getLogger()
    root.setLevel(min(root.level, logging.WARNING))


@pytest.fixture(scope="session")
def comfy() -> None:
    """A real ComfyUI can be imported: `import comfy.sample`, `tiny_models.build(...)`."""


@pytest.fixture(scope="session")
def _graphs(comfy: None) -> Iterator[comfy_env.Graphs]:
    graphs = comfy_env.Graphs()
    yield graphs
    graphs.close()


@pytest.fixture
def graphs(_graphs: comfy_env.Graphs) -> comfy_env.Graphs:
    """`graphs.run(api_graph) -> GraphResult`: the real PromptExecutor, with nothing cached from another test."""
    _graphs.forget()
    return _graphs


@pytest.fixture(scope="session")
def server(comfy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[comfy_server.Server]:
    """A real ComfyUI server process with this pack, the test nodes and the demo nodes linked in."""
    with comfy_server.Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium for Playwright's `executable_path`; without one the test skips and says so."""
    found = browsers.find_chromium()
    if found is None:
        pytest.skip("no Chromium: install one, or set CHROMIUM to its path")
    return found


@pytest.fixture(scope="module")
def emoji(comfy: None) -> object:
    """`zoo.emoji_pack`, the small emoji models as a library."""
    for module in ("judge", "models"):
        comfy_env.from_benchmarks(f"zoo.emoji_pack.{module}")
    return sys.modules["zoo.emoji_pack"]


@pytest.fixture
def endless_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check is made, however many were in vain: what a test has rejected is rejected at each of its calls."""
    monkeypatch.setattr("speca.patience.VAIN", 1000)
