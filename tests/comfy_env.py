"""A real ComfyUI inside this Python process, with this pack in it under one set of module objects.

Used by the tests' `conftest.py` and by `benchmarks/`. Call `prepare()` before anything imports `comfy` or `speca`:

    import comfy_env
    comfy_env.prepare()          # `import comfy...`, `import speca` and `import speca_pack.nodes...` work from here
    graphs = comfy_env.Graphs()  # the real PromptExecutor, with the pack loaded by ComfyUI's own loader

ComfyUI loads a pack under a name made of its folder's path, and tests want to `import speca`. Two copies of a module
would mean two copies of each class, so `_OneCopy` maps every such name to a single module object.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
PACK = "speca_pack"
CORE = "speca"

# Folder name in `custom_nodes` -> what is linked there.
PACKS = {
    "speca": ROOT,
    "speca_emoji_demo": ROOT / "benchmarks" / "zoo" / "emoji_pack",
    "speca_demo": ROOT / "benchmarks" / "zoo" / "demo",
    "tiny_pack": ROOT / "tests" / "tiny_pack",
}


def comfyui_path() -> Path | None:
    """The ComfyUI to test with: `COMFYUI_PATH`, or the one that `python dev.py setup` installs, or None."""
    given = os.environ.get("COMFYUI_PATH")
    candidates = [Path(given)] if given else [ROOT / ".dev" / "ComfyUI"]
    found = next((path.resolve() for path in candidates if (path / "comfy" / "options.py").is_file()), None)
    if given and found is None:
        raise FileNotFoundError(f"COMFYUI_PATH is {given}, but there is no comfy/options.py in it")
    return found


class _OneCopy(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Resolves `alias.x.y` to the module object of `real.x.y`, importing that if it is not there yet."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}

    def _real_name(self, name: str) -> str | None:
        for alias, real in self.aliases.items():
            if name == alias or name.startswith(alias + "."):
                return real + name[len(alias) :]
        return None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        real = self._real_name(name)
        if real is None:
            return None
        try:
            importlib.import_module(real)
        except ModuleNotFoundError as error:
            if error.name != real:
                raise
            return None  # so that the error names what was asked for
        return importlib.machinery.ModuleSpec(
            name, self, origin=real, is_package=hasattr(sys.modules[real], "__path__")
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = sys.modules[str(spec.origin)]
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # The import system has just put the alias's spec on the module; relative imports need its own.
        alias_spec = module.__spec__
        assert alias_spec is not None
        module.__spec__ = alias_spec.loader_state


_one_copy = _OneCopy()


def _load_package(name: str, folder: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def load_pack() -> None:
    """Make `import speca` and `import speca_pack` work without the repository's root on `sys.path`.

    The root must not be there: its `nodes/` would shadow ComfyUI's `nodes.py`. The pure parts of `speca` load
    without ComfyUI.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    if _one_copy not in sys.meta_path:
        sys.meta_path.insert(0, _one_copy)
    _one_copy.aliases[f"{PACK}.{CORE}"] = CORE
    if CORE not in sys.modules:
        _load_package(CORE, ROOT / "speca")
    if PACK not in sys.modules and (ROOT / "__init__.py").is_file():
        _load_package(PACK, ROOT)


def from_benchmarks(name: str) -> types.ModuleType:
    """The module `name` of `benchmarks/` (`zoo.emoji_pack.models`), which is on `sys.path` for its import only."""
    folder = str(ROOT / "benchmarks")
    sys.path.append(folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def make_base_directory(folder: Path) -> Path:
    """A base directory for ComfyUI below `folder`, with this pack and the test nodes linked into `custom_nodes`."""
    base = folder / "base"
    for name in ("custom_nodes", "models", "input", "output", "temp", "user/default"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for name, target in PACKS.items():
        link = base / "custom_nodes" / name
        if (target / "__init__.py").is_file() and not link.exists():
            link.symlink_to(target, target_is_directory=True)
    return base


@dataclass
class _State:
    base: Path | None = None
    prepared_with: tuple[str, ...] | None = None


_state = _State()


def prepare(*, gpu: bool = False) -> bool:
    """Put ComfyUI first on `sys.path`, give it its arguments, load the pack; False if there is no ComfyUI.

    ComfyUI reads its arguments when `comfy.cli_args` is first imported, so this must come before any such import.
    A second call with the same arguments does nothing.
    """
    load_pack()
    comfyui = comfyui_path()
    if comfyui is None:
        return False
    # Torch's attention is what a GPU uses, whatever the device here.
    arguments = ("--disable-api-nodes", "--use-pytorch-cross-attention", *(() if gpu else ("--cpu",)))
    if _state.prepared_with is not None:
        if _state.prepared_with != arguments:
            raise RuntimeError(f"ComfyUI was already prepared with {_state.prepared_with}, not {arguments}")
        return True
    if "comfy.cli_args" in sys.modules:
        raise RuntimeError("comfy.cli_args was imported before comfy_env.prepare(): its arguments are fixed already")

    sys.path.insert(0, str(comfyui))
    folder = Path(tempfile.mkdtemp(prefix="speca-comfyui-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _state.base = make_base_directory(folder)
    own_arguments = sys.argv
    sys.argv = [own_arguments[0], "--base-directory", str(_state.base), *arguments]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = own_arguments
    if not gpu:
        _allow_torchvision_without_its_operators()
    # `nodes` puts `comfy/` first on sys.path, where utils.py shadows ComfyUI's package `utils`: import that before.
    importlib.import_module("utils.install_util")
    _state.prepared_with = arguments
    return True


def _allow_torchvision_without_its_operators() -> None:
    """PyPI's torchvision is built for CUDA: beside a CPU torch its operators are missing and importing it fails."""
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _keep_alive.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


_keep_alive: list[object] = []


@dataclass
class GraphResult:
    """What one run of a graph gave.

    `outputs` is each output node's `ui`, by node id; `events` are the (name, data) sent to the browser in order, and
    grow until the next run starts, for what other threads send late; `messages` are the executor's own status
    messages (name, data).
    """

    prompt_id: str
    success: bool
    outputs: dict[str, Any]
    events: list[tuple[str, Any]] = field(default_factory=list)
    messages: list[tuple[str, Any]] = field(default_factory=list)

    def sent(self, name: str) -> list[Any]:
        """The data of all events called `name`."""
        return [data for event, data in self.events if event == name]

    def wait_for(self, condition: Callable[[GraphResult], bool], timeout: float = 30.0) -> None:
        """Wait for events that another thread sends after the run. Raises `TimeoutError`."""
        give_up = time.monotonic() + timeout
        while not condition(self):
            if time.monotonic() > give_up:
                raise TimeoutError(f"events so far: {[name for name, _ in self.events]}")
            time.sleep(0.01)

    @property
    def error(self) -> dict[str, Any] | None:
        """The executor's record of the exception that ended the run, if one did."""
        return next((data for name, data in self.messages if name == "execution_error"), None)


class InvalidGraphError(Exception):
    """ComfyUI's own validation refused the graph; the text holds its reasons."""


class Graphs:
    """Runs API-format graphs through the real `PromptExecutor`, in this process, one after the other.

    The pack is loaded by ComfyUI's own custom node loader. As in the server, outputs are cached from one `run` to
    the next until `forget()`.
    """

    def __init__(self) -> None:
        if _state.base is None:
            raise RuntimeError("call comfy_env.prepare() first; without ComfyUI there is nothing to run graphs with")
        # ComfyUI names a pack after its path. The package itself it executes and registers; what is below is ours.
        loader_name = str(_state.base / "custom_nodes" / "speca").replace(".", "_x_")
        _one_copy.aliases[f"{loader_name}.nodes"] = f"{PACK}.nodes"
        _one_copy.aliases[f"{loader_name}.{CORE}"] = CORE
        import execution
        import nodes
        import server

        self._execution = execution
        # As in the server: its event loop in one thread, execution in another.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="comfyui-server", daemon=True)
        self._thread.start()

        async def start() -> None:
            server.PromptServer(asyncio.get_running_loop())
            await nodes.init_extra_nodes(init_custom_nodes=True, init_api_nodes=False)

        self._in_loop(start())
        self.node_classes: dict[str, type] = nodes.NODE_CLASS_MAPPINGS
        self.server = server.PromptServer.instance
        self.events: list[tuple[str, Any]] = []
        # Everything that goes to a browser passes here; whoever sends binary previews sends them here too.
        self.server.send_sync = lambda event, data, sid=None: self.events.append((event, data))
        # The server sends only to clients that are there; this one stands for a browser.
        self.client_id = "tests"
        self.server.client_id = self.client_id
        self.server.sockets[self.client_id] = None
        self._ids = itertools.count(1)
        self.forget()

    def forget(self) -> None:
        """Drop all cached outputs, so that the next run executes every node."""
        sizes = {"lru": 0, "ram": 0, "ram_inactive": 0}  # the last one is asked for from 0.23 on
        self._executor = self._execution.PromptExecutor(
            self.server, cache_type=self._execution.CacheType.CLASSIC, cache_args=sizes
        )

    def run(self, graph: dict[str, Any], *, extra_pnginfo: dict[str, Any] | None = None) -> GraphResult:
        """Validate and execute `graph` (API format). Raises `InvalidGraphError`; the result has a node's exception."""
        prompt_id = f"prompt-{next(self._ids)}"
        validation = self._execution.validate_prompt(prompt_id, graph, None)
        valid, error, output_nodes, node_errors = self._in_loop(validation)
        if not valid:
            raise InvalidGraphError(f"{error}; {node_errors}")
        self.events = []
        extra_data: dict[str, Any] = {"client_id": self.client_id}
        if extra_pnginfo is not None:
            extra_data["extra_pnginfo"] = extra_pnginfo
        self._executor.execute(graph, prompt_id, extra_data, output_nodes)
        self._in_loop(asyncio.sleep(0))  # what the run has handed over to the server's thread is done after this
        return GraphResult(
            prompt_id,
            self._executor.success,
            dict(self._executor.history_result["outputs"]),
            self.events,
            list(self._executor.status_messages),
        )

    def _in_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=300)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
