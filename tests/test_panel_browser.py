"""The panel as a person sees it: the real frontend in headless Chromium, on a real server, clicking Run.

Every situation is seen on two frontends (the one that the pinned ComfyUI asks for, and a recent one) and with both
renderers (classic canvas and Nodes 2.0). Screenshots of each are kept in `.dev/screenshots`.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import uuid
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Context, Decimal
from pathlib import Path
from typing import Any

import pytest

import browsers
import comfy_server

ROOT = Path(__file__).resolve().parents[1]
SCREENSHOTS = ROOT / ".dev" / "screenshots"
PLACES = [(frontend, renderer) for frontend in ("pinned", "recent") for renderer in ("classic", "nodes2")]

STEPS = 28
# Of random weights some forecasts are accepted and some rejected with these, whatever the defaults are.
SETTINGS = {"threshold": 0.25, "threshold_end_factor": 4.0, "accumulate_error": True, "max_consecutive": 8}
# Steps of a run that is interrupted, and of one that lives through a reload of the page.
ENDLESS = 10_000
LONG = 200
# Generous: a machine that also trains a model draws a page a second.
TIMEOUT = 120_000

playwright_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.comfy

seeds = itertools.count(1)


# -- graphs ------------------------------------------------------------------------------------------------------------


def chain(first: int = 1, steps: int = STEPS, loader: dict | None = None, **settings: Any) -> dict[str, dict]:
    """TinyModelLoader -> SpeCa -> KSampler -> SpeCaReport -> SaveLatent in API format, ids from `first`."""
    ids = [str(first + i) for i in range(5)]
    sampler = {
        "seed": next(seeds),
        "steps": steps,
        "cfg": settings.pop("cfg", 1.0),
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    links = {"model": [ids[1], 0], "latent_image": [ids[0], 1], "positive": [ids[0], 2], "negative": [ids[0], 3]}
    return {
        ids[0]: node("TinyModelLoader", **{"name": "flux", "weights_seed": 0, "batch_size": 1, **(loader or {})}),
        ids[1]: node("SpeCa", model=[ids[0], 0], **{**SETTINGS, **settings}),
        ids[2]: node("KSampler", **links, **sampler),
        ids[3]: node("SpeCaReport", samples=[ids[2], 0], model=[ids[1], 0]),
        ids[4]: node("SaveLatent", samples=[ids[3], 0], filename_prefix="panel"),
    }


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


PLACE_OF = {
    "TinyModelLoader": (40, 60),
    "SpeCa": (370, 60),
    "KSampler": (890, 60),
    "SpeCaReport": (890, 420),
    "SaveLatent": (1180, 60),
    "ConditioningConcat": (40, 380),
    "SpeCaDemoLoadFlux": (40, 60),
    "SpeCaDemoPrompt": (40, 200),
    "SpeCaDemoLatent": (40, 380),
    "VAELoader": (890, 620),
    "VAEDecode": (1180, 300),
    "PreviewImage": (1180, 420),
}


def workflow(object_info: dict, graph: dict[str, dict], workflow_id: str | None = None) -> dict[str, Any]:
    """An API graph as a saved workflow: what the frontend reads from a file. A second chain stands below the first."""
    nodes: dict[str, dict] = {}
    links: list[list] = []
    row: dict[str, int] = {}
    for node_id, each in graph.items():
        info = object_info[each["class_type"]]
        described = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        inputs, values = [], []
        for name, (kind, *options) in described.items():
            given = each["inputs"].get(name)
            if isinstance(given, list):
                inputs.append({"name": name, "type": kind, "link": None})
            elif isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                values.append(given if given is not None else options[0].get("default"))
                if options and options[0].get("control_after_generate"):
                    values.append("randomize")
        outputs = [
            {"name": name, "type": kind, "links": []}
            for name, kind in zip(info["output_name"], info["output"], strict=True)
        ]
        x, y = PLACE_OF[each["class_type"]]
        place = [x, y + 620 * row.setdefault(each["class_type"], 0)]
        row[each["class_type"]] += 1
        nodes[node_id] = {
            "id": int(node_id),
            "type": each["class_type"],
            "pos": place,
            "size": [460 if each["class_type"] == "SpeCa" else 250, 80],
            "flags": {},
            "order": len(nodes),
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {},
            "widgets_values": values,
        }
    for node_id, each in graph.items():
        for index, slot in enumerate(nodes[node_id]["inputs"]):
            source, output = each["inputs"][slot["name"]]
            link = len(links) + 1
            links.append([link, int(source), output, int(node_id), index, slot["type"]])
            slot["link"] = link
            nodes[source]["outputs"][output]["links"].append(link)
    return {
        "id": workflow_id or str(uuid.uuid4()),
        "revision": 0,
        "last_node_id": max(map(int, nodes)),
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "config": {},
        "extra": {"ds": {"scale": 0.9, "offset": [60, 60]}},
        "version": 0.4,
    }


# -- the page ----------------------------------------------------------------------------------------------------------


class Panel:
    """The panel of one node in the page."""

    def __init__(self, window: Window, path: tuple[int, ...]) -> None:
        self.window = window
        self.element = window.page.evaluate_handle(
            """(path) => {
                let graph = app.rootGraph ?? app.graph
                for (const id of path.slice(0, -1)) graph = graph.getNodeById(id).subgraph
                return graph.getNodeById(path.at(-1)).widgets.find((widget) => widget.name === "speca_panel").element
            }""",
            list(path),
        ).as_element()

    @property
    def run_id(self) -> str | None:
        return self.element.get_attribute("data-run")

    @property
    def status(self) -> str | None:
        return self.element.get_attribute("data-status")

    def text(self, part: str) -> str:
        return self.element.query_selector(f".speca-{part}").inner_text()

    def wait_for(self, status: str = "finished", other_than: str | None = None, calls: int = 0) -> str:
        """The id of the run shown, once it has `status`, is another than the one given and has `calls` errors drawn."""
        self.window.wait(
            """([el, status, before, calls]) => {
                const drawn = [...el.querySelectorAll(".speca-heads")].map((each) => Number(each.dataset.n))
                return el.dataset.status === status && (el.dataset.run ?? null) !== before
                    && drawn.reduce((a, b) => a + b, 0) >= calls
            }""",
            self.element,
            status,
            other_than,
            calls,
        )
        return self.run_id

    def wait_until_empty(self) -> None:
        """Until the panel says that no run is shown: a tab that was just opened is drawn a moment after the page says
        that it is there."""
        self.window.wait("([el]) => !el.dataset.run && el.querySelector('.speca-empty').innerText", self.element)

    def wait_for_run(self) -> dict:
        """The run shown as the server tells it, once it is finished and all its errors are drawn."""
        run = self.window.place.run(self.wait_for())
        self.wait_for(calls=sum("error" in call["rows"][0] for call in run["calls"]))
        return run

    def kinds(self) -> list[str]:
        """The outcomes of the cells drawn, row by row."""
        names = self.element.eval_on_selector_all(".speca-cell", "cells => cells.map(cell => cell.className.baseVal)")
        return [re.search(r"speca-(full|accepted|trusted|rejected)", name)[1] for name in names]

    def choices(self) -> list[str]:
        return self.element.eval_on_selector_all(".speca-choice", "all => all.map(each => each.textContent)")


class Window:
    """One browser window."""

    def __init__(self, place: Place, context: Any) -> None:
        self.place = place
        self.page = context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))
        self.page.on("console", lambda message: self.errors.append(message.text) if "[SpeCa]" in message.text else None)
        self.page.add_init_script("localStorage.setItem('vueNodesBannerDismissed', 'true')")
        self.open()

    def open(self) -> None:
        self.page.goto(self.place.server.url)
        self._wait_until_ready()

    def reload(self) -> None:
        self.page.reload()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        self.wait(
            """() => window.app?.extensionManager?.workflow?.activeWorkflow && app.graph
                && document.querySelector('link[href*="panel.css"]')?.sheet"""
        )

    def wait(self, condition: str, *arguments: Any) -> None:
        """Until a JavaScript function of the list of `arguments` is true; polled, as a busy page draws few frames."""
        self.page.wait_for_function(condition, arg=list(arguments), timeout=TIMEOUT, polling=100)

    def load(self, graph: dict, name: str) -> None:
        """Opens a saved workflow in a new tab."""
        self.page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
        self.wait("([name]) => app.extensionManager.workflow.activeWorkflow.path.includes(name)", name)

    def open_tab(self, name: str) -> None:
        self.page.locator(".workflow-label", has_text=name).click()
        # Away from the tab, whose preview would lie over the Run button.
        self.page.mouse.move(700, 700)
        self.wait("([name]) => app.extensionManager.workflow.activeWorkflow.path.includes(name)", name)

    def click_run(self) -> None:
        self.page.get_by_role("button", name="Run", exact=True).first.click()

    def set_batch(self, n: int) -> None:
        field = self.page.locator("input.p-inputnumber-input, input[aria-label='Batch Count']").first
        field.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(str(n))
        self.page.keyboard.press("Tab")
        self.wait("([el, n]) => el.value === n", field.element_handle(), str(n))

    def set_widget(self, node_id: int, name: str, value: Any) -> None:
        self.page.evaluate(
            """([id, name, value]) => {
                const widget = app.graph.getNodeById(id).widgets.find((each) => each.name === name)
                widget.value = value
                widget.callback?.(value)
            }""",
            [node_id, name, value],
        )

    def open_subgraph(self, node_id: int) -> None:
        self.page.evaluate(
            """(id) => {
                const node = (app.rootGraph ?? app.graph).getNodeById(id)
                app.canvas.openSubgraph(node.subgraph, node)
            }""",
            node_id,
        )

    def panel(self, *path: int) -> Panel:
        return Panel(self, path)

    def open_runs(self) -> Any:
        """The panel below the canvas, opened by the icon on the node."""
        if not self.page.locator(".speca-runs").count():
            self.page.locator(".speca-open:visible").first.click()
        runs = self.page.locator(".speca-runs")
        runs.wait_for(state="visible", timeout=TIMEOUT)
        return runs

    def close_runs(self) -> None:
        if self.page.locator(".speca-runs").count():
            self.page.evaluate("app.extensionManager.bottomPanel.toggleBottomPanelTab('speca')")

    def graph_id(self) -> str:
        return self.page.evaluate("(app.rootGraph ?? app.graph).id")

    def shot(self, name: str) -> Path:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{self.place.name}-{name}.png"
        # Toasts fade, and the mouse must not leave a tooltip behind that the picture is not about.
        self.page.screenshot(path=path)
        return path

    def own_errors(self) -> list[str]:
        return [error for error in self.errors if "speca" in error.lower()]


class Place:
    """A frontend with a renderer: a server, and a browser with one window."""

    def __init__(self, frontend: str, renderer: str, server: comfy_server.Server, browser: Any) -> None:
        self.name = f"{frontend}-{renderer}"
        self.renderer = renderer
        self.server = server
        self.set("Comfy.VueNodes.Enabled", renderer == "nodes2")
        self.set("Comfy.ColorPalette", "dark")
        self.set("Comfy.Locale", "en")
        self.object_info = server.get("/object_info")
        self.context = browser.new_context(
            viewport={"width": 1400, "height": 860}, device_scale_factor=1, accept_downloads=True, locale="en-US"
        )
        self.context.set_default_timeout(TIMEOUT)
        self.window = Window(self, self.context)

    def set(self, name: str, value: Any) -> None:
        self.server.post(f"/settings/{name}", value)

    def workflow(self, graph: dict[str, dict], workflow_id: str | None = None) -> dict[str, Any]:
        return workflow(self.object_info, graph, workflow_id)

    def own_nodes(self) -> dict[str, dict]:
        """The pack's nodes, without those of the tests and of the demo."""
        mine = {name: info for name, info in self.object_info.items() if info["python_module"] == "custom_nodes.speca"}
        assert {"SpeCa", "SpeCaReport"} <= set(mine)
        return mine

    def runs(self, workflow_id: str | None = None) -> list[dict]:
        runs = self.server.get("/speca/runs")["runs"]
        return [run for run in runs if workflow_id in (None, run["workflow_id"])]

    def run(self, run_id: str) -> dict:
        return self.server.get(f"/speca/runs/{run_id}")


@pytest.fixture(scope="module")  # an open Playwright keeps an event loop, which other modules cannot have beside theirs
def _browser(chromium: str) -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, headless=True, args=list(browsers.FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def _servers(comfy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running: dict[str, comfy_server.Server] = {}

    def server(frontend: str) -> comfy_server.Server:
        if frontend not in running:
            arguments = browsers.frontend_arguments(frontend == "recent")
            # A page without a graphics card draws its canvas on the processor that computes the runs.
            settings = {
                "Comfy.Minimap.Visible": False,
                "Comfy.Graph.CanvasInfo": False,
                "LiteGraph.Canvas.MaximumFps": 10,
            }
            folder = tmp_path_factory.mktemp(f"{frontend}-server")
            running[frontend] = comfy_server.Server(folder, arguments=arguments, settings=settings).__enter__()
        return running[frontend]

    yield server
    for each in running.values():
        each.stop()


@pytest.fixture(scope="module", params=PLACES, ids=["-".join(place) for place in PLACES])
def place(request: pytest.FixtureRequest, _browser: Any, _servers: Any) -> Iterator[Place]:
    frontend, renderer = request.param
    made = Place(frontend, renderer, _servers(frontend), _browser)
    yield made
    made.context.close()


@pytest.fixture
def window(place: Place) -> Iterator[Window]:
    """The place's window; whatever a test does in it, nothing of this pack may throw."""
    place.window.errors.clear()
    yield place.window
    place.window.close_runs()
    assert place.window.own_errors() == []


# -- one run -----------------------------------------------------------------------------------------------------------


def test_run_is_drawn_as_the_server_tells_it(place: Place, window: Window) -> None:
    window.load(place.workflow(chain()), "one-run")
    panel = window.panel(2)
    assert "Run the workflow" in panel.text("empty")
    window.click_run()
    run = panel.wait_for_run()
    assert (run["node_id"], run["sampler_node_id"], run["workflow_id"]) == ("2", "3", window.graph_id())
    assert panel.kinds() == [call["outcome"] for call in run["calls"]]
    assert {"full", "accepted", "rejected"} <= set(panel.kinds())
    totals = run["totals"]
    trusted = f", {totals['trusted']} trusted" if totals["trusted"] else ""
    assert panel.text("counts") == (
        f"{STEPS} calls: {totals['full']} full, {totals['accepted']} accepted{trusted}, {totals['rejected']} rejected"
    )
    assert panel.text("factor") == _factor(totals["speedup"])

    # Pointed at: everything there is to know of the call.
    rejected = next(i for i, kind in enumerate(panel.kinds()) if kind == "rejected")
    cell = panel.element.query_selector_all(".speca-cell")[rejected]
    cell.hover()
    call = run["calls"][rejected]
    tip = panel.text("tip")
    assert tip.startswith(f"call {rejected + 1} · σ ")
    assert f"rejected: error {_figure(call['rows'][0]['error'])} over {_figure(call['rows'][0]['threshold'])}" in tip
    assert tip.endswith(" ms")
    box, edge = (panel.element.query_selector(f".speca-{name}").bounding_box() for name in ("tip", "chart"))
    assert box["x"] >= edge["x"] - 1
    assert box["x"] + box["width"] <= edge["x"] + edge["width"] + 1
    window.shot("one-run")

    # The keyboard walks the same cells, and the canvas does not move with it.
    before = window.page.evaluate("[...app.graph.getNodeById(2).pos]")
    window.page.mouse.move(5, 500)
    panel.element.query_selector(".speca-cell").focus()
    assert panel.text("tip").startswith("call 1 · ")
    window.page.keyboard.press("ArrowRight")
    assert panel.text("tip").startswith("call 2 · ")
    window.page.keyboard.press("End")
    assert panel.text("tip").startswith(f"call {STEPS} · ")
    assert window.page.evaluate("[...app.graph.getNodeById(2).pos]") == before
    window.page.evaluate("document.activeElement.blur()")


def _figure(value: float) -> str:
    """Three significant digits as the page rounds them: by the digits that stand there, halves up (0.6465: 0.647)."""
    rounded = Context(prec=3, rounding=ROUND_HALF_UP).create_decimal(repr(value))
    return format(rounded.normalize(), "f")


def _factor(value: float) -> str:
    return f"{Decimal(repr(value)).quantize(Decimal('0.1'), ROUND_HALF_UP)}×"


def test_figures_are_compared_as_the_page_rounds_them() -> None:
    assert [_figure(value) for value in (0.6465, 0.5, 1.0, 0.012345, 20.0)] == ["0.647", "0.5", "1", "0.0123", "20"]
    assert [_factor(value) for value in (1.25, 2.0, 1.049)] == ["1.3×", "2.0×", "1.0×"]


def test_nothing_of_the_panel_is_saved_or_sent(place: Place, window: Window) -> None:
    graph = place.workflow(chain())
    window.load(graph, "saved")
    saved = window.page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
    values = next(each for each in saved["nodes"] if each["type"] == "SpeCa")["widgets_values"]
    assert values == next(each for each in graph["nodes"] if each["type"] == "SpeCa")["widgets_values"]
    prompt = window.page.evaluate("app.graphToPrompt().then(({output}) => output)")
    assert set(prompt["2"]["inputs"]) == {"model", *_widgets(place, "SpeCa")}
    # The panel is the node's last widget.
    assert window.page.evaluate("app.graph.getNodeById(2).widgets.at(-1).name") == "speca_panel"


def _widgets(place: Place, name: str) -> list[str]:
    described = place.object_info[name]["input"]
    return [each for each in (*described["required"], *described.get("optional", {})) if each != "model"]


def test_only_the_seed_changed(place: Place, window: Window) -> None:
    """The node does not run again, its MODEL comes from the cache; the run is a new one all the same."""
    window.load(place.workflow(chain()), "new-seed")
    panel = window.panel(2)
    window.click_run()
    first = panel.wait_for()
    window.click_run()
    second = panel.wait_for(other_than=first)
    assert place.run(first)["prompt_id"] != place.run(second)["prompt_id"]
    cached = place.server.get("/history")[place.run(second)["prompt_id"]]["status"]["messages"]
    assert "2" in next(data["nodes"] for name, data in cached if name == "execution_cached")
    assert len(place.runs(window.graph_id())) == 2


def test_a_batch_of_samples_has_a_row_for_each_that_differs(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(loader={"batch_size": 6})), "batch")
    panel = window.panel(2)
    run_id = None
    for _ in range(12):
        # Noise decides whether the samples differ, and every click draws new noise.
        window.click_run()
        run_id = panel.wait_for(other_than=run_id)
        calls = place.run(run_id)["calls"]
        by_sample = [[call["rows"][sample]["outcome"] for call in calls] for sample in range(6)]
        if len({tuple(each) for each in by_sample}) > 1:
            break
        assert panel.kinds() == by_sample[0]
    else:
        pytest.fail("six samples were decided alike twelve times")
    window.wait("([el, n]) => el.querySelectorAll('.speca-cell').length === n", panel.element, 6 * STEPS)
    assert panel.kinds() == [*itertools.chain(*by_sample)]
    window.shot("batch")


def test_cond_and_uncond_in_separate_calls_have_a_row_each(place: Place, window: Window) -> None:
    # A prompt of six times the length cannot share a batch with the other.
    graph = chain(cfg=4.0, steps=12)
    for node_id, (to, more) in {"6": ("1", "1"), "7": ("6", "6"), "8": ("7", "6")}.items():
        inputs = {"conditioning_to": [to, 2 if to == "1" else 0], "conditioning_from": [more, 2 if more == "1" else 0]}
        graph[node_id] = node("ConditioningConcat", **inputs)
    graph["3"]["inputs"]["positive"] = ["8", 0]
    window.load(place.workflow(graph), "guided")
    panel = window.panel(2)
    window.click_run()
    run = place.run(panel.wait_for())
    by_cond = {cond: [c["outcome"] for c in run["calls"] if c["conds"] == [cond]] for cond in (0, 1)}
    assert [len(each) for each in by_cond.values()] == [12, 12]
    assert panel.kinds() == by_cond[0] + by_cond[1]
    labels = panel.element.eval_on_selector_all("text.speca-label", "all => all.map(each => each.textContent)")
    assert {"pos", "neg"} <= set(labels)
    window.shot("guided")


# -- several runs ------------------------------------------------------------------------------------------------------


def test_two_nodes_show_their_own_runs(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(1) | chain(11, threshold=0.9)), "two-nodes")
    left, right = window.panel(2), window.panel(12)
    window.click_run()
    ids = [left.wait_for(), right.wait_for()]
    assert [place.run(run_id)["node_id"] for run_id in ids] == ["2", "12"]
    for panel, run_id in zip((left, right), ids, strict=True):
        assert panel.kinds() == [call["outcome"] for call in place.run(run_id)["calls"]]
        assert panel.choices() == []
    window.page.evaluate(
        "app.canvas.ds.scale = 0.62; app.canvas.ds.offset = [120, 90]; app.canvas.setDirty(true, true)"
    )
    window.page.wait_for_timeout(300)
    window.shot("two-nodes")


def test_one_node_for_two_samplers_offers_both(place: Place, window: Window) -> None:
    graph = chain(1, steps=8) | {
        key: each for key, each in chain(11, steps=10).items() if each["class_type"] in ("KSampler", "SaveLatent")
    }
    graph["13"]["inputs"] |= {"model": ["2", 0], "latent_image": ["4", 0], "positive": ["1", 2], "negative": ["1", 3]}
    graph["15"]["inputs"] |= {"samples": ["13", 0]}
    window.load(place.workflow(graph), "two-samplers")
    panel = window.panel(2)
    window.click_run()
    window.wait(
        "([el]) => el.querySelectorAll('.speca-choice').length === 2 && el.dataset.status === 'finished'",
        panel.element,
    )
    assert panel.choices() == ["KSampler #3", "KSampler #13"]
    for index, steps in enumerate((8, 10)):
        panel.element.query_selector_all(".speca-choice")[index].click()
        window.wait("([el, n]) => el.querySelectorAll('.speca-cell').length === n", panel.element, steps)
        assert place.run(panel.run_id)["sampler_node_id"] == ("3", "13")[index]

    # A choice that is held down while another run is drawn is chosen, and keeps the focus.
    button, before = panel.element.query_selector(".speca-choice"), panel.run_id
    box = button.bounding_box()
    window.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    window.page.mouse.down()
    for sampler in (3, 13):
        window.set_widget(sampler, "seed", next(seeds))
    window.page.evaluate("app.queuePrompt(0)")
    panel.wait_for(other_than=before)
    window.page.mouse.up()
    window.wait("([el]) => el.getAttribute('aria-pressed') === 'true'", button)
    assert button.evaluate("el => el === document.activeElement")


def test_inside_a_subgraph_and_in_two_of_them(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(1, threshold=0.5)), "subgraph")
    window.page.evaluate(
        """() => {
            const graph = app.rootGraph ?? app.graph
            const inner = [2, 3, 4].map((id) => graph.getNodeById(id))
            const { subgraph, node } = graph.convertToSubgraph(new Set(inner))
            subgraph.name = node.title = "Sampling"
        }"""
    )
    saved = window.page.evaluate("JSON.parse(JSON.stringify((app.rootGraph ?? app.graph).serialize()))")
    outer = next(each for each in saved["nodes"] if each["type"] == saved["definitions"]["subgraphs"][0]["id"])
    window.click_run()
    window.open_subgraph(outer["id"])
    panel = window.panel(outer["id"], 2)
    run = panel.wait_for_run()
    assert run["node_id"] == f"{outer['id']}:2"
    assert panel.kinds() == [call["outcome"] for call in run["calls"]]
    assert panel.choices() == []
    assert panel.element.is_visible()
    window.page.wait_for_timeout(500)
    window.shot("subgraph")

    # The same subgraph a second time: one inner node, two runs.
    twin = json.loads(json.dumps(outer)) | {
        "id": 40,
        "title": "Sampling",
        "pos": [outer["pos"][0], outer["pos"][1] + 320],
    }
    graph = json.loads(json.dumps(saved)) | {"id": str(uuid.uuid4())}
    next(each for each in graph["nodes"] if each["id"] == outer["id"])["title"] = "First pass"
    twin["title"] = "Second pass"
    link = max(each[0] for each in graph["links"])
    for slot, socket in enumerate(twin["inputs"]):
        if socket.get("link") is None:
            continue
        _, source, output, _, _, kind = next(each for each in graph["links"] if each[0] == socket["link"])
        link += 1
        socket["link"] = link
        graph["links"].append([link, source, output, 40, slot, kind])
        next(each for each in graph["nodes"] if each["id"] == source)["outputs"][output]["links"].append(link)
    # Each with a model of its own, or ComfyUI would take the passes from its cache.
    loader = next(each for each in graph["nodes"] if each["type"] == "TinyModelLoader")
    loader["widgets_values"][1] = next(seeds)
    second = json.loads(json.dumps(loader)) | {"id": 42, "pos": [loader["pos"][0], loader["pos"][1] + 320]}
    second["widgets_values"][1] = next(seeds)
    second["outputs"] = [each | {"links": []} for each in second["outputs"]]
    model = next(each for each in graph["links"] if each[3] == 40 and each[5] == "MODEL")
    loader["outputs"][0]["links"].remove(model[0])
    second["outputs"][0]["links"] = [model[0]]
    model[1] = 42
    save = next(each for each in graph["nodes"] if each["type"] == "SaveLatent")
    sink = json.loads(json.dumps(save)) | {"id": 41, "pos": [save["pos"][0], save["pos"][1] + 320]}
    samples = next(i for i, each in enumerate(twin["outputs"]) if each["type"] == "LATENT" and each.get("links"))
    for each in twin["outputs"]:
        each["links"] = []
    link += 1
    twin["outputs"][samples]["links"] = [link]
    sink["inputs"][0]["link"] = link
    graph["links"].append([link, 40, samples, 41, 0, "LATENT"])
    graph["nodes"] += [twin, sink, second]
    graph |= {"last_node_id": 42, "last_link_id": link}
    window.load(graph, "used-twice")
    window.click_run()
    window.open_subgraph(40)
    panel = window.panel(40, 2)
    window.wait(
        "([el]) => el.querySelectorAll('.speca-choice').length === 2 && el.dataset.status === 'finished'",
        panel.element,
    )
    assert set(panel.choices()) == {"First pass", "Second pass"}
    shown = {}
    for name in ("First pass", "Second pass"):
        panel.element.query_selector(f".speca-choice:text-is('{name}')").click()
        window.wait(
            "([el, name]) => el.querySelector('.speca-choice[aria-pressed=true]')?.textContent === name",
            panel.element,
            name,
        )
        shown[name] = place.run(panel.run_id)["node_id"]
    assert shown == {"First pass": f"{outer['id']}:2", "Second pass": "40:2"}
    window.page.wait_for_timeout(500)
    window.shot("subgraph-twice")
    window.page.evaluate("app.canvas.setGraph(app.rootGraph ?? app.graph)")


def test_two_tabs_do_not_show_each_other(place: Place, window: Window) -> None:
    """Also when both hold a copy of one workflow, with one id."""
    graph = place.workflow(chain())
    window.load(graph, "tab-left")
    window.click_run()
    left = window.panel(2).wait_for()
    window.load(json.loads(json.dumps(graph)), "tab-right")
    window.panel(2).wait_until_empty()
    assert "Run the workflow" in window.panel(2).text("empty")
    # ComfyUI runs nothing for a prompt that it has run already.
    window.set_widget(3, "seed", next(seeds))
    window.click_run()
    right = window.panel(2).wait_for()
    assert left != right
    # The tab's nodes are made anew when it is opened; its run is there again.
    window.open_tab("tab-left")
    assert window.panel(2).wait_for() == left
    assert window.panel(2).kinds() == [call["outcome"] for call in place.run(left)["calls"]]
    window.shot("tab-left-again")


def test_a_second_window(place: Place, window: Window) -> None:
    """The same workflow in another window follows; another workflow there does not."""
    graph = place.workflow(chain())
    other = Window(place, place.context)
    try:
        window.load(graph, "window-one")
        other.load(json.loads(json.dumps(graph)), "window-two")
        window.click_run()
        run_id = window.panel(2).wait_for()
        assert other.panel(2).wait_for() == run_id
        assert other.panel(2).kinds() == window.panel(2).kinds()
        other.load(place.workflow(chain()), "window-other")
        window.click_run()
        window.panel(2).wait_for(other_than=run_id)
        assert other.panel(2).run_id is None
        assert other.own_errors() == []
    finally:
        other.page.close()


def test_a_queued_batch_of_prompts(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(steps=12)), "queued")
    window.set_batch(3)
    window.click_run()
    panel = window.panel(2)
    panel.wait_for("finished")
    runs = window.open_runs()
    runs.locator(".speca-row[data-status=finished]").nth(2).wait_for(timeout=TIMEOUT)
    window.set_batch(1)
    shown = runs.locator(".speca-row").evaluate_all("rows => rows.map(row => row.dataset.run)")
    told = sorted(place.runs(window.graph_id()), key=lambda run: -run["started_at"])
    assert shown == [run["run_id"] for run in told]
    assert len(shown) == 3
    assert panel.wait_for() == shown[0]


def test_an_interrupted_run_says_so(place: Place, window: Window) -> None:
    # A batch, so that a call takes long enough for a slow page to keep up with.
    window.load(place.workflow(chain(steps=ENDLESS, loader={"batch_size": 8})), "interrupted")
    panel = window.panel(2)
    window.click_run()
    panel.wait_for("running", calls=20)
    assert window.page.evaluate("el => el.querySelectorAll('.speca-pending').length", panel.element) > 0
    window.page.get_by_role("button", name="Cancel current run").click()
    run = place.run(panel.wait_for("interrupted"))
    assert run["status"] == "interrupted"
    n_calls = run["totals"]["calls"]
    assert n_calls < ENDLESS
    window.wait(
        "([el, text]) => el.querySelector('.speca-note').textContent.replace(',', '') === text",
        panel.element,
        f"Interrupted after {n_calls} calls.",
    )
    window.shot("interrupted")
    # The next run is not touched by it.
    window.load(place.workflow(chain()), "after-interrupt")
    window.click_run()
    window.panel(2).wait_for("finished")


def test_reload_in_the_middle_of_a_run(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(steps=LONG)), "reload")
    window.click_run()
    run_id = window.panel(2).wait_for("running", calls=10)
    window.shot("running")
    # The frontend stores an open workflow a moment after it has changed.
    window.page.wait_for_timeout(1200)
    window.reload()
    window.wait("() => app.graph.getNodeById(2)?.widgets?.at(-1)?.element")
    panel = window.panel(2)
    window.wait("([el]) => el.dataset.run", panel.element)
    assert panel.run_id == run_id
    panel.wait_for_run()
    # And afterwards, with everything already over.
    window.reload()
    window.wait("() => app.graph.getNodeById(2)?.widgets?.at(-1)?.element")
    assert window.panel(2).wait_for("finished") == run_id
    window.shot("after-reload")


# -- the panel below the canvas ----------------------------------------------------------------------------------------


def test_runs_are_chosen_compared_exported_and_copied(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(threshold=0.3)), "compare")
    panel = window.panel(2)
    window.click_run()
    strict = panel.wait_for()
    window.set_widget(2, "threshold", 0.8)
    window.click_run()
    generous = panel.wait_for(other_than=strict)

    runs = window.open_runs()
    window.wait("() => document.querySelectorAll('.speca-runs .speca-row').length === 2")
    rows = runs.locator(".speca-row")
    assert rows.evaluate_all("rows => rows.map(row => row.dataset.run)") == [generous, strict]
    assert runs.locator(".speca-row[data-role=A]").get_attribute("data-run") == generous
    window.shot("runs")
    rows.nth(1).get_by_role("button", name="Compare").click()
    assert runs.locator(".speca-row[data-role=B]").get_attribute("data-run") == strict
    assert "threshold 0.8 → 0.3" in runs.locator(".speca-difference").inner_text()
    assert runs.locator(".speca-threshold").count() == 2
    assert runs.locator(".speca-cell").count() == 2 * STEPS
    window.shot("compared")

    rows.nth(1).locator(".speca-row-main").click()
    assert runs.locator(".speca-row[data-role=A]").get_attribute("data-run") == strict
    with window.page.expect_download() as download:
        runs.get_by_role("button", name="Export JSON").click()
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    told = place.run(strict)
    assert {key: exported[key] for key in told if key != "calls"} == {key: told[key] for key in told if key != "calls"}
    assert [call["outcome"] for call in exported["calls"]] == [call["outcome"] for call in told["calls"]]
    with window.page.expect_download() as download:
        runs.get_by_role("button", name="Export CSV").click()
    assert download.value.suggested_filename.endswith(".csv")
    table = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    assert [row["outcome"] for row in table] == [call["rows"][0]["outcome"] for call in told["calls"]]

    runs.get_by_role("button", name="Copy settings to the node").click()
    assert window.page.evaluate("app.graph.getNodeById(2).widgets.find(w => w.name === 'threshold').value") == 0.3
    assert runs.get_by_role("status").inner_text() == "Copied to SpeCa"
    if place.renderer == "nodes2":
        assert window.page.locator("[data-node-id='2'] input").first.input_value() == "0.300"
    window.page.keyboard.press("Control+z")
    window.wait("() => app.graph.getNodeById(2).widgets.find(w => w.name === 'threshold').value === 0.8")


# -- the comparison with the run without SpeCa -------------------------------------------------------------------------


def comparison_of(panel: Panel, status: str) -> str:
    """What the panel says of its comparison, once that has the status."""
    panel.window.wait(
        """([el, status]) => {
            const shown = el.querySelector(".speca-comparison")
            return !shown.hidden && shown.dataset.status === status
        }""",
        panel.element,
        status,
    )
    return panel.text("compared")


def graph_of(window: Window) -> Any:
    """The graph as it would be saved, without what a click and a taller panel change (which node lies on top, sizes)
    and the empty list of values that a node has from its first drawn picture on."""
    graph = window.page.evaluate("JSON.parse(JSON.stringify(app.graph.serialize()))")
    nodes = [
        {key: value for key, value in each.items() if key != "size" and value not in ([], {})}
        for each in graph.pop("nodes")
    ]
    return graph | {"nodes": sorted(nodes, key=lambda each: each["id"])}


def test_compare_shows_the_run_without_speca_beside_it_and_leaves_the_graph_alone(place: Place, window: Window) -> None:
    graph = chain(1, threshold=0.6)
    graph["6"] = node("VAELoader", vae_name="pixel_space")
    graph["7"] = node("VAEDecode", samples=["4", 0], vae=["6", 0])
    graph["8"] = node("PreviewImage", images=["7", 0])
    # pixel_space takes pictures of three channels for latents.
    graph["1"] = node("SpeCaDemoLoadFlux")
    graph["9"] = node("SpeCaDemoPrompt", model=["1", 0], emoji="fox", motion="any")
    graph["10"] = node("SpeCaDemoLatent", model=["1", 0], batch_size=1)
    graph["3"]["inputs"] |= {"latent_image": ["10", 0], "positive": ["9", 0], "negative": ["9", 1]}
    window.load(place.workflow(graph), "with-and-without")
    panel = window.panel(2)
    assert not panel.element.query_selector(".speca-action-compare-uncached").is_visible()
    window.click_run()
    plain = panel.wait_for()
    window.wait("() => !!app.nodeOutputs?.[8]")
    shown = "JSON.stringify(Object.fromEntries(app.graph.nodes.map(({ id }) => [id, app.nodeOutputs[id]])))"
    outputs = window.page.evaluate(shown)
    before, saved = graph_of(window), len(list(place.server.base.glob("output/**/*")))

    panel.element.query_selector(".speca-action-compare-uncached").click()
    said = comparison_of(panel, "done")
    run = place.run(panel.wait_for(other_than=plain))
    assert re.fullmatch(r"Without SpeCa [\d.]+ s, with it [\d.]+ s: [\d.]+×\. PSNR [\d.]+ dB\.", said)
    assert (run["node_id"], run["sampler_node_id"]) == ("2", "3.compare")
    assert panel.choices() == []
    assert graph_of(window) == before
    assert window.page.evaluate(shown) == outputs
    assert len(list(place.server.base.glob("output/**/*"))) == saved

    # Of each call that was forecast its true error, in the chart, the tip and the legend.
    seen = [call["call"] for call in run["calls"] if "true" in call["rows"][0]]
    assert seen == [call["call"] for call in run["calls"] if call["outcome"] in ("accepted", "trusted")]
    window.wait("([el, n]) => Number(el.querySelector('path.speca-truth')?.dataset.n) === n", panel.element, len(seen))
    panel.element.query_selector_all(".speca-cell")[seen[0]].hover()
    row = run["calls"][seen[0]]["rows"][0]
    assert f"alone: judged {_figure(row['judged'])}, truly {_figure(row['true'])}" in panel.text("tip")
    assert "times the judged ones" in panel.text("note")
    picture = panel.element.query_selector(".speca-comparison img")
    window.wait("([el]) => el.complete && el.naturalWidth > 700 && el.clientHeight > 100", picture)
    inside, box = (each.bounding_box() for each in (picture, panel.element))
    assert inside["y"] + inside["height"] <= box["y"] + box["height"] + 1
    window.page.mouse.move(5, 5)
    window.page.evaluate("app.canvas.ds.offset = [60, 20]; app.canvas.setDirty(true, true)")
    window.page.wait_for_timeout(500)
    window.shot("compared-with-uncached")

    # The run is another one again: no comparison stands beside it.
    window.click_run()
    panel.wait_for(other_than=run["run_id"])
    assert not panel.element.query_selector(".speca-comparison").is_visible()


def test_compare_can_be_cancelled_and_leaves_nothing_behind(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(loader={"batch_size": 8})), "cancelled-comparison")
    panel = window.panel(2)
    window.click_run()
    plain = panel.wait_for()
    before = graph_of(window)
    window.set_widget(3, "steps", ENDLESS)
    button = panel.element.query_selector(".speca-action-compare-uncached")
    button.click()
    window.wait(
        "([el]) => /step \\d+,?\\d* of 10,000 with SpeCa/.test(el.querySelector('.speca-compared').textContent)",
        panel.element,
    )
    assert button.inner_text() == "Cancel"
    window.shot("comparing")
    button.click()
    assert comparison_of(panel, "cancelled") == "The comparison was cancelled."
    interrupted = panel.wait_for("interrupted", other_than=plain)
    assert place.server.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert button.inner_text() == "Compare"
    window.set_widget(3, "steps", STEPS)
    assert graph_of(window) == before
    window.click_run()
    panel.wait_for("finished", other_than=interrupted)


def test_compare_says_why_it_cannot(place: Place, window: Window) -> None:
    window.load(place.workflow(chain()), "not-compared")
    panel = window.panel(2)
    window.click_run()
    panel.wait_for()
    window.set_widget(3, "sampler_name", "dpm_2")
    panel.element.query_selector(".speca-action-compare-uncached").click()
    assert "KSampler leaves out a step with dpm_2" in comparison_of(panel, "refused")
    window.set_widget(3, "sampler_name", "euler")
    window.page.evaluate("app.graph.getNodeById(2).mode = 4")
    panel.element.query_selector(".speca-action-compare-uncached").click()
    window.wait(
        "([el]) => /SpeCa node is bypassed/.test(el.querySelector('.speca-compared').textContent)", panel.element
    )


def test_the_tab_opens_with_its_runs_in_it(place: Place, window: Window) -> None:
    """Not empty first and filled a picture later: what is there the moment the tab's content enters the page."""
    window.load(place.workflow(chain(threshold=0.3)), "opened")
    window.close_runs()
    panel = window.panel(2)
    window.click_run()
    run_id = panel.wait_for()
    shown = window.page.evaluate(
        """() => new Promise((resolve) => {
            const observer = new MutationObserver(() => {
                const runs = document.querySelector(".speca-runs")
                if (!runs) return
                observer.disconnect()
                resolve([...runs.querySelectorAll(".speca-row")].map((row) => row.dataset.run))
            })
            observer.observe(document.body, { childList: true, subtree: true })
            app.extensionManager.bottomPanel.toggleBottomPanelTab("speca")
        })"""
    )
    assert shown == [run_id]


def test_light_theme_and_other_languages(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(threshold=0.3)), "light")
    panel = window.panel(2)
    window.click_run()
    panel.wait_for()
    window.open_runs()
    window.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    window.wait("([el]) => el.dataset.theme === 'light'", panel.element)
    window.page.wait_for_timeout(500)
    window.shot("light")
    window.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    window.wait("([el]) => el.dataset.theme === 'dark'", panel.element)
    legend_says = "([word]) => document.querySelector('.speca-panel .speca-legend')?.textContent.includes(word)"
    for language, word in (("zh", "完整计算"), ("ja", "予測を採用")):
        window.page.evaluate("language => app.extensionManager.setting.set('Comfy.Locale', language)", language)
        window.wait(legend_says, word)
        window.page.wait_for_timeout(500)
        window.shot(language)
    window.page.evaluate("app.extensionManager.setting.set('Comfy.Locale', 'en')")
    window.wait(legend_says, "computed")


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_odd_events_break_nothing(place: Place, window: Window) -> None:
    window.load(place.workflow(chain(steps=12)), "odd")
    panel = window.panel(2)
    window.click_run()
    run_id = panel.wait_for()
    drawn = panel.kinds()
    told = place.run(run_id)
    origin = {key: told[key] for key in ("prompt_id", "workflow_id", "node_id", "sampler_node_id")}
    ended = {"version": 1, "type": "run_ended", "run_id": run_id, **origin, "status": "failed"}
    doubled = {"version": 1, "type": "calls", "run_id": run_id, **origin, "calls": told["calls"][:3], "totals": None}
    for event in (
        None,
        [],
        "nonsense",
        {"version": 1},
        {"version": 1, "type": "calls", "run_id": run_id, "calls": [{"call": 2}, None, {"call": "x", "rows": 1}]},
        {"version": 1, "type": "calls", "run_id": "unknown-run", "node_id": "99:1", "calls": told["calls"]},
        {"version": 1, "type": "calls", "run_id": "__proto__", "node_id": 2, "calls": told["calls"]},
        {
            "version": 7,
            "type": "calls",
            "run_id": "newer",
            **origin,
            "calls": [{"call": 0, "rows": [{"outcome": "dreamt"}]}],
        },
        doubled,
        ended,
    ):
        window.page.evaluate("event => app.api.dispatchEvent(new CustomEvent('speca', { detail: event }))", event)
    window.page.wait_for_timeout(300)
    assert panel.run_id == run_id
    assert panel.status == "finished"
    assert panel.kinds() == drawn


def test_nothing_deprecated_is_used(place: Place) -> None:
    """A page with nothing but the pack's own start-up: no notice of a deprecated import or method names it."""
    page = place.context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.text} {message.location}"))
    try:
        page.goto(place.server.url)
        page.wait_for_function("() => document.querySelector('link[href*=\"panel.css\"]')?.sheet", timeout=TIMEOUT)
        page.wait_for_timeout(1000)
    finally:
        page.close()
    notices = [line for line in said if "[ComfyUI Notice]" in line or "deprecat" in line.lower()]
    assert [line for line in notices if "/extensions/speca/" in line] == []
    # Notices of imports name the module, not who asked for it; the pack imports these two alone.
    imported = set()
    for module in (ROOT / "web").glob("*.js"):
        imported |= set(re.findall(r'from "([^"]+)"', module.read_text(encoding="utf-8")))
    assert {each for each in imported if not each.startswith("./")} == {"../../scripts/api.js", "../../scripts/app.js"}


# -- what the server serves --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_every_node_input_and_output_is_translated(place: Place, language: str) -> None:
    """English is the nodes' own text; the other languages must keep up with it."""
    if place.name != "pinned-classic":
        pytest.skip("the same on every frontend")
    nodes = place.own_nodes()
    served = place.server.get("/i18n")[language]["nodeDefs"]
    for name, info in nodes.items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert served[name]["display_name"]
        assert served[name]["description"]
        assert set(served[name]["inputs"]) == set(inputs), name
        assert set(served[name]["outputs"]) == {str(i) for i in range(len(info["output"]))}, name
        assert all(each["name"] and each["tooltip"] for each in served[name]["inputs"].values()), name
    # The page's translator reads these as its syntax.
    assert not set("@|{}") & set("".join(_strings({name: served[name] for name in nodes})))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for each in value.values():
            yield from _strings(each)


def test_every_node_has_a_help_page(place: Place) -> None:
    if place.name != "pinned-classic":
        pytest.skip("the same on every frontend")
    for name, described in place.own_nodes().items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith("# ")
        info = described["input"]
        for each in {**info.get("required", {}), **info.get("optional", {})}:
            if name != "SpeCa" or each != "model":
                assert re.search(rf"\b{each}\b", page), f"{name}.md does not speak of {each}"


def test_the_pictures_of_the_help_pages_are_there(place: Place) -> None:
    """The page takes a path in them as relative to the pack's docs (the frontend's markdownRendererUtil)."""
    if place.name != "pinned-classic":
        pytest.skip("the same on every frontend")
    import urllib.request

    pages = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "web" / "docs").glob("*.md")}
    pictures = {name: re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page) for name, page in pages.items()}
    assert {name for name, of in pictures.items() if of} == {"SpeCa", "SpeCaCompare", "SpeCaTune"}
    for picture in itertools.chain(*pictures.values()):
        with urllib.request.urlopen(f"{place.server.url}/extensions/speca/docs/{picture}", timeout=30) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
            assert 10_000 < len(answer.read()) < 150_000


def test_the_routes_in_a_real_server(place: Place) -> None:
    if place.name != "pinned-classic":
        pytest.skip("the same on every frontend")
    import urllib.error
    import urllib.request

    for path in ("/speca/runs/nothing", "/api/speca/runs/nothing", "/speca/runs/..%2f..%2fcomfyui.db"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            place.server.get(path)
        assert refused.value.code == 404
    request = urllib.request.Request(f"{place.server.url}/speca/runs", headers={"Origin": "http://elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 403
