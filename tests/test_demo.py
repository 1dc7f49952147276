"""`python dev.py demo`: its graph in the real frontend and executor, its server process, its traces afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import browsers
import comfy_env
import comfy_server

pytestmark = pytest.mark.comfy

DEMO = comfy_env.ROOT / "benchmarks" / "zoo" / "demo"
ADDRESS = "/?template=speca_flux_demo&source=speca_demo"
MODEL = comfy_env.ROOT / "benchmarks" / "zoo" / "models" / "flux-emoji.safetensors"
SPECA, SEED, COMPARE = "2", "3", "10"

needs_model = pytest.mark.skipif(not MODEL.is_file(), reason=f"{MODEL.name} is not trained yet")


def api_graph() -> dict[str, Any]:
    graph = json.loads((DEMO / "flux_demo_api.json").read_text(encoding="utf-8"))
    return {key: {name: node[name] for name in ("class_type", "inputs")} for key, node in graph.items()}


def without_seed(graph: dict[str, Any]) -> dict[str, Any]:
    """The seed is drawn anew for each Run."""
    return {key: node["inputs"] for key, node in graph.items() if key != SEED}


def test_the_demo_uses_the_defaults(graphs: comfy_env.Graphs) -> None:
    schema = graphs.node_classes["SpeCa"].INPUT_TYPES()
    described = {**schema["required"], **schema.get("optional", {})}
    defaults = {name: entry[1]["default"] for name, entry in described.items() if "default" in entry[1]}
    settings = api_graph()[SPECA]["inputs"]
    assert {name: settings[name] for name in defaults} == pytest.approx(defaults)


@needs_model
@pytest.mark.parametrize("seed", [7, 8])
def test_the_demo_shows_both_pictures_and_the_numbers(graphs: comfy_env.Graphs, seed: int) -> None:
    graph = api_graph()
    graph[SEED]["inputs"]["noise_seed"] = seed
    result = graphs.run(graph)
    assert result.success, result.error
    told = json.loads(result.outputs[COMPARE]["speca_compare"][0])
    run = told["run"]
    assert run["calls"] == 28
    # Fewer than two in three calls may be computed.
    assert run["accepted"] + run["trusted"] >= run["calls"] / 3
    assert told["psnr"] >= 30, told["summary"]
    assert len(result.outputs[COMPARE]["images"]) == 1


# --- In the browser ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pinned frontend", "1.58.1"])
def demo_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[comfy_server.Server]:
    arguments = browsers.frontend_arguments(request.param != "pinned frontend")
    with comfy_server.Server(tmp_path, arguments=arguments) as server:
        yield server


@pytest.fixture
def page(chromium: str, tmp_path: Path) -> Iterator[Any]:
    with browsers.opened_page(chromium, tmp_path / "profile", 1600, 950) as page:
        yield page


def test_the_address_opens_the_graph_and_run_gives_pictures(
    demo_server: comfy_server.Server, page: Any, request: pytest.FixtureRequest
) -> None:
    page.goto(demo_server.url + ADDRESS)
    loaded = "window.app?.graph?._nodes?.some(node => node.type === 'SpeCa')"
    page.wait_for_function(loaded, timeout=120_000)
    # The open graph, as the frontend would queue it, is the one that scripts and tests use.
    shown = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert without_seed(shown) == without_seed(api_graph())

    folder = comfy_env.ROOT / ".dev" / "artefacts"
    folder.mkdir(parents=True, exist_ok=True)
    name = request.node.callspec.params["demo_server"].replace(" ", "-")
    page.wait_for_timeout(1000)
    page.screenshot(path=folder / f"demo-opened-{name}.png")
    # Such as "Invalid workflow against zod schema".
    assert page.locator(".p-toast-message").all_inner_texts() == []
    if not MODEL.is_file():
        pytest.skip(f"opened; not run, because {MODEL.name} is not trained yet")

    page.get_by_role("button", name="Run", exact=True).first.click()
    images = (
        "ids => ids.every(id => { const node = window.app.graph.getNodeById(id);"
        " return (window.app.nodeOutputs?.[id]?.images ?? node?.images ?? []).length > 0 })"
    )
    page.wait_for_function(images, arg=[int(COMPARE)], timeout=240_000)
    page.wait_for_timeout(2000)
    page.screenshot(path=folder / f"demo-run-{name}.png")


# --- The command ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="ends the demo with a POSIX signal")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_the_graph_from_an_existing_installation_and_leaves_nothing(
    comfy: None, ending: signal.Signals
) -> None:
    comfyui = comfy_env.comfyui_path()
    custom_nodes = comfyui / "custom_nodes"
    before = sorted(path.name for path in custom_nodes.iterdir())
    port = comfy_server.free_port()
    process = subprocess.Popen(
        [sys.executable, str(comfy_env.ROOT / "dev.py"), "demo", "--comfyui", str(comfyui), "--no-browser",
         "--port", str(port), "--", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell does for its background jobs
    )  # fmt: skip
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if "The demo graph is at" in line:
                break
        else:
            pytest.fail("the demo ended:\n" + "".join(lines)[-6000:])
        assert f"http://127.0.0.1:{port}{ADDRESS}" in lines[-1]
        assert {"speca", "speca_demo"} <= {path.name for path in custom_nodes.iterdir()}
        process.send_signal(ending)
        lines.append(process.communicate(timeout=60)[0])
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in lines[-1]
    assert process.returncode == {signal.SIGINT: 0, signal.SIGTERM: 143}[ending]
    assert sorted(path.name for path in custom_nodes.iterdir()) == before
    with pytest.raises(OSError, match=r"refused|reset"):
        _connect(port)


def _connect(port: int) -> None:
    import socket

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # connections of the old server may linger for a moment
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            time.sleep(0.2)
