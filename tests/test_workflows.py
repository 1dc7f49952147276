"""The graphs that users open: valid for the running ComfyUI, tidy, at the defaults, and running from end to end.

After a change of the defaults: `python tests/workflow_graphs.py --refresh`.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import browsers
import comfy_env
import comfy_server
import workflow_graphs
from speca.config import SpeCaConfig
from workflow_graphs import Workflow

PATHS = workflow_graphs.paths()

# Graph -> the tiny model that stands for its large one (None: its own loader reads a tiny file), and its steps.
EXPECTED: dict[str, tuple[str | None, int]] = {
    "compare_with_and_without_speca": ("flux", 28),
    "dit_xl2_imagenet": (None, 50),
    "flux1_dev_text_to_image": ("flux", 28),
    "hunyuan_video_speed_mode": ("hunyuan_video", 30),
    "hunyuan_video_text_to_video": ("hunyuan_video", 30),
    "wan_tune": ("wan21", 30),
}

# Graph -> the settings that it is there to show; all others are the defaults.
SHOWN: dict[str, dict[str, Any]] = {"hunyuan_video_speed_mode": {"mode": "speed", "target_speedup": 3.0}}

# Loader -> its inputs that name a file, and the folder of `models` that the file belongs into.
FILE_INPUTS = {
    "UNETLoader": {"unet_name": "diffusion_models"},
    "CLIPLoader": {"clip_name": "text_encoders"},
    "DualCLIPLoader": {"clip_name1": "text_encoders", "clip_name2": "text_encoders"},
    "VAELoader": {"vae_name": "vae"},
    "SpeCaDiTLoader": {"model_name": "diffusion_models"},
}

# The nodes that report on a run.
REPORTERS = ("SpeCaReport", "SpeCaCompare")

# The nodes that give a MODEL with SpeCa's settings on it.
SETTERS = ("SpeCa", "SpeCaTune")

MAX_THUMBNAIL_BYTES = 60_000


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def workflow(path: Path) -> Workflow:
    return workflow_graphs.load(path)


def nodes_of(workflow: Workflow, *kinds: str) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] in kinds]


def input_types(graphs: comfy_env.Graphs) -> dict[str, Any]:
    class Lazily(dict):
        def __missing__(self, kind: str) -> Any:
            self[kind] = graphs.node_classes[kind].INPUT_TYPES()
            return self[kind]

    return Lazily()


def files_of(prompt: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str]]:
    """(node id, input) -> (file, folder) of every model file that the graph names."""
    return {
        (key, name): (node["inputs"][name], folder)
        for key, node in prompt.items()
        for name, folder in FILE_INPUTS.get(node["class_type"], {}).items()
    }


def test_every_expected_graph_is_there() -> None:
    assert [path.stem for path in PATHS] == sorted(EXPECTED)
    assert len({workflow_graphs.load(path)["id"] for path in PATHS}) == len(PATHS)


# --- The file -------------------------------------------------------------------------------------------------------


def test_the_settings_are_the_defaults(path: Path, workflow: Workflow) -> None:
    default = replace(SpeCaConfig(), **SHOWN.get(path.stem, {}))
    speca = nodes_of(workflow, "SpeCa")
    assert speca
    for node in speca:
        names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
        settings = dict(zip(names, node["widgets_values"], strict=True))
        assert settings == {name: getattr(default, name, "none") for name in settings}, (
            "run `python tests/workflow_graphs.py --refresh`"
        )


def test_links_and_slots_agree(workflow: Workflow) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    for link, origin, slot, target, place, kind in workflow["links"]:
        output, entry = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"]
        assert entry["link"] == link
        assert output["type"] == entry["type"] == kind
        assert nodes[origin]["order"] < nodes[target]["order"]
    at_outputs = [link for node in nodes.values() for out in node["outputs"] for link in out["links"] or []]
    at_inputs = [entry["link"] for node in nodes.values() for entry in node["inputs"] if entry["link"] is not None]
    assert sorted(at_outputs) == sorted(at_inputs) == sorted(link[0] for link in workflow["links"])


def test_speca_is_reported_and_used(workflow: Workflow) -> None:
    """Each sampler's run with SpeCa has a report, on the same MODEL as the sampler; SpeCa Compare is both."""
    links = workflow_graphs.links_of(workflow)
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    for report in nodes_of(workflow, "SpeCaReport"):
        samples, model = (links[entry["link"]] for entry in report["inputs"])
        assert kinds[samples[0]] in ("KSampler", "SamplerCustomAdvanced")
        assert kinds[model[0]] in SETTERS
        users = {target for origin, _, target, _ in links.values() if origin == model[0]}
        assert users - {report["id"]}
    for beside in nodes_of(workflow, "SpeCaCompare", "SpeCaTune"):
        guider = next(links[entry["link"]][0] for entry in beside["inputs"] if entry["name"] == "guider")
        assert "SpeCa" in {kinds[origin] for origin, _, target, _ in links.values() if target == guider}
    assert len(nodes_of(workflow, *REPORTERS)) == len(nodes_of(workflow, "SpeCa")) == 1


def test_the_layout_is_tidy(workflow: Workflow) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert not list(workflow_graphs.overlapping(workflow["nodes"]))
    for _, origin, _, target, *_ in workflow["links"]:
        right = nodes[origin]["pos"][0] + nodes[origin]["size"][0]
        assert right < nodes[target]["pos"][0], f"the link from {origin} to {target} runs backwards"

    groups = {
        group["title"]: (x, y, x + width, y + height)
        for group in workflow["groups"]
        for x, y, width, height in [group["bounding"]]
    }
    boxes = list(groups.values())
    assert not any(workflow_graphs.overlap(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    for node in workflow["nodes"]:
        left, top, right, bottom = box = workflow_graphs.rectangle(node)
        around = [g for g in boxes if workflow_graphs.overlap(g, box)]
        assert all(g[0] < left and g[1] < top and right < g[2] and bottom < g[3] for g in around), node["id"]
        assert around or node["type"] in workflow_graphs.VIRTUAL, f"{node['type']} stands in no group"


def test_the_panel_has_room(workflow: Workflow) -> None:
    """Nothing stands below the SpeCa node, which grows with what its panel shows."""
    for speca in nodes_of(workflow, "SpeCa"):
        left, _, right, bottom = workflow_graphs.rectangle(speca)
        below = (left, bottom, right, bottom + 400)
        assert not [n["id"] for n in workflow["nodes"] if workflow_graphs.overlap(below, workflow_graphs.rectangle(n))]
        assert right - left >= 400


def test_the_thumbnail_is_a_small_picture(path: Path) -> None:
    from PIL import Image

    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < MAX_THUMBNAIL_BYTES
    with Image.open(thumbnail) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 256


# --- With ComfyUI ---------------------------------------------------------------------------------------------------


def test_only_model_files_are_missing(graphs: comfy_env.Graphs, workflow: Workflow) -> None:
    """ComfyUI's own validation finds nothing to complain about but files, and the note names each and its folder."""
    import execution

    prompt = workflow_graphs.to_api(workflow, input_types(graphs))
    expected = files_of(prompt)
    _, _, _, errors = asyncio.run(execution.validate_prompt("workflow", copy.deepcopy(prompt), None))
    found = {
        (key, error["extra_info"]["input_name"]): error["type"]
        for key, node in errors.items()
        for error in node["errors"]
    }
    # This ComfyUI checks V3 lists only when the node runs.
    late = {entry for entry in expected if prompt[entry[0]]["class_type"] == "SpeCaDiTLoader"}
    assert set(expected) - late <= set(found) <= set(expected)
    assert set(found.values()) == {"value_not_in_list"}
    for key, node in prompt.items():
        types = input_types(graphs)[node["class_type"]]
        for name, (kind, *rest) in {**types.get("required", {}), **types.get("optional", {})}.items():
            options = kind if isinstance(kind, list) else rest[0].get("options") if kind == "COMBO" else None
            if options is not None and (key, name) not in expected:
                assert node["inputs"][name] in options

    note = next(node for node in nodes_of(workflow, "MarkdownNote") if node["title"] == "Files to download")
    sections = re.split(r"^\*\*(\w+)\*\*", note["widgets_values"][0], flags=re.MULTILINE)
    named = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert set(named) == {folder for _, folder in expected.values()}
    for file, folder in expected.values():
        assert f"`{file}`" in named[folder]


def test_missing_files_are_offered_for_download(graphs: comfy_env.Graphs, workflow: Workflow) -> None:
    """ComfyUI's dialog of missing models names the files and folders that the loaders then look in."""
    prompt = workflow_graphs.to_api(workflow, input_types(graphs))
    offered = {
        (str(node["id"]), model["name"], model["directory"])
        for node in workflow["nodes"]
        for model in node["properties"].get("models", [])
    }
    named = {(key, file, folder) for (key, _), (file, folder) in files_of(prompt).items()}
    # The authors' DiT is a .pt, which the dialog does not fetch.
    assert offered == {entry for entry in named if entry[1].endswith(".safetensors")}


@pytest.fixture
def run(graphs: comfy_env.Graphs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`run(workflow, **settings)`: through the real executor on a tiny model, SpeCa's `settings` changed."""
    monkeypatch.setitem(graphs.node_classes, "TinyTextEncoder", workflow_graphs.TinyTextEncoder)
    written: list[Path] = []

    def run(name: str, workflow: Workflow, **settings: Any) -> tuple[dict[str, Any], comfy_env.GraphResult]:
        prompt = workflow_graphs.to_api(workflow, input_types(graphs))
        prompt = workflow_graphs.shrink(prompt, EXPECTED[name][0])
        written.extend(workflow_graphs.write_tiny_files(prompt))
        for node in prompt.values():
            if node["class_type"] == "SpeCa":
                node["inputs"] |= settings
        return prompt, graphs.run(prompt)

    yield run
    for file in written:
        file.unlink(missing_ok=True)


def key_of(prompt: dict[str, Any], *kinds: str) -> str:
    (key,) = (key for key, node in prompt.items() if node["class_type"] in kinds)
    return key


def test_it_runs_from_end_to_end(run: Any, path: Path, workflow: Workflow) -> None:
    model, steps = EXPECTED[path.stem]
    prompt, result = run(path.stem, workflow)
    assert result.success, result.error
    report = json.loads(result.outputs[key_of(prompt, *REPORTERS)]["speca"][0])
    totals = report["totals"]
    assert totals["calls"] == report["steps"] == len(report["calls"]) == steps
    assert sum(totals[outcome] for outcome in ("full", "accepted", "trusted", "rejected")) == steps
    assert report["native"] is None
    assert report["status"] == "finished"
    assert report["architecture"] == {None: "dit", "wan21": "wan"}.get(model, model)
    # The settings are those of the node whose MODEL was sampled.
    assert report["node_id"] == key_of(prompt, "SpeCaTune" if path.stem == "wan_tune" else "SpeCa")
    # Every output node has left its files.
    kinds = {"SaveImage", "PreviewImage", "SaveVideo", "SpeCaCompare", "SpeCaTune"}
    shown = [result.outputs[key]["images"] for key, node in prompt.items() if node["class_type"] in kinds]
    n_pictures = {"dit_xl2_imagenet": [3], "compare_with_and_without_speca": [1, 1], "wan_tune": [1, 1]}
    assert [len(images) for images in shown] == n_pictures.get(path.stem, [1])
    for image in (image for images in shown for image in images):
        assert file_of(image).stat().st_size > 0


def file_of(image: dict[str, str]) -> Path:
    import folder_paths

    return Path(folder_paths.get_directory_by_type(image["type"]), image["subfolder"], image["filename"])


def test_at_threshold_zero_the_comparison_finds_no_difference(run: Any) -> None:
    """As the note says."""
    name = "compare_with_and_without_speca"
    workflow = workflow_graphs.load(workflow_graphs.FOLDER / f"{name}.json")
    prompt, result = run(name, workflow, threshold=0.0)
    assert result.success, result.error
    told = json.loads(result.outputs[key_of(prompt, "SpeCaCompare")]["speca_compare"][0])
    assert (told["psnr"], told["latent_error"]) == ("infinite", 0.0)


def test_what_was_tuned_is_what_the_video_is_made_with(run: Any) -> None:
    """As the note says; and the next Run tunes nothing again."""
    prompt, result = run("wan_tune", workflow_graphs.load(workflow_graphs.FOLDER / "wan_tune.json"))
    assert result.success, result.error
    told = json.loads(result.outputs[key_of(prompt, "SpeCaTune")]["speca_tune"][0])
    report = json.loads(result.outputs[key_of(prompt, "SpeCaReport")]["speca"][0])
    found = {
        name: value for name, value in told["settings"].items() if value is not None
    }  # None: the architecture's own
    assert {name: report["settings"][name] for name in found} == found
    assert 1 <= len(told["runs"]) <= 3


def test_refreshing_changes_only_what_is_stale(graphs: comfy_env.Graphs, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    types = graphs.node_classes["SpeCa"].INPUT_TYPES()
    assert workflow_graphs.refreshed(text, types) == text

    stale = json.loads(text)
    (node,) = nodes_of(stale, "SpeCa")
    del node["inputs"][-1], node["widgets_values"][-1]
    node["widgets_values"][0] = 0.987
    assert json.loads(workflow_graphs.refreshed(json.dumps(stale, indent=2), types)) == json.loads(text)


# --- In the browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["pinned", "1.58.1"])
def frontend(request: pytest.FixtureRequest, comfy: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    arguments = browsers.frontend_arguments(request.param != "pinned")
    # Its dialog would ask the hub for the sizes of the files.
    settings = {"Comfy.Workflow.ShowMissingModelsWarning": False}
    folder = tmp_path_factory.mktemp("workflows")
    with comfy_server.Server(folder, arguments=arguments, settings=settings) as server:
        yield request.param, server


@pytest.fixture(scope="module")
def page(frontend: Any, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browsers.opened_page(chromium, tmp_path_factory.mktemp("profile"), 1920, 1000) as page:
        yield page


LOADED = """async () => {
  const { output, workflow } = await app.graphToPrompt()
  const nodes = app.graph._nodes.map((node) =>
    ({ id: node.id, type: node.type, pos: Array.from(node.pos), size: Array.from(node.size) }))
  return { output, workflow, nodes }
}"""


def test_the_frontend_opens_it_as_a_template(frontend: Any, page: Any, graphs: comfy_env.Graphs, path: Path) -> None:
    name, server = frontend
    assert path.stem in server.get("/api/workflow_templates")["speca"]
    page.goto(f"{server.url}/?template={path.stem}&source=speca", timeout=120_000)
    workflow = workflow_graphs.load(path)
    page.wait_for_function("id => window.app?.graph?.id === id", arg=workflow["id"], timeout=120_000)
    page.wait_for_timeout(1500)  # DOM widgets make their nodes fit
    shown = page.evaluate(LOADED)

    kinds = input_types(graphs)
    prompt = workflow_graphs.to_api(workflow, kinds)
    queued = {key: {k: node[k] for k in ("class_type", "inputs")} for key, node in shown["output"].items()}
    assert workflow_graphs.without_gained(queued, prompt, kinds) == prompt

    # Saving it again changes no value and no link. What nodes have gained since comes after the file's values.
    saved = {node["id"]: node for node in shown["workflow"]["nodes"]}
    for node in workflow["nodes"]:
        values = node.get("widgets_values", [])
        assert saved[node["id"]].get("widgets_values", [])[: len(values)] == values
    assert sorted(link[:5] for link in shown["workflow"]["links"]) == sorted(link[:5] for link in workflow["links"])

    assert not list(workflow_graphs.overlapping(shown["nodes"])), "a node is larger than the file says"
    status = page.evaluate(
        "async (name) => (await fetch(`/api/workflow_templates/speca/${name}.jpg`)).status", path.stem
    )
    assert status == 200

    folder = comfy_env.ROOT / "tests" / "artefacts"
    folder.mkdir(exist_ok=True)
    page.screenshot(path=folder / f"workflow-{path.stem}-{name}.png")
