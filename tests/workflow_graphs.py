"""The graphs in `workflows/` as ComfyUI's frontend saves them: conversion, shape, small stand-ins, refreshing.

    python tests/workflow_graphs.py --check      say which files hold other SpeCa settings than the node's defaults
    python tests/workflow_graphs.py --refresh    write the defaults into them

Both need ComfyUI (see `comfy_env`) and cover the demo's graph too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "workflows"
DEMO = ROOT / "benchmarks" / "zoo" / "demo"

Workflow = dict[str, Any]
Prompt = dict[str, Any]
Rectangle = tuple[float, float, float, float]

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"  # SaveVideo's format, in newer versions of ComfyUI
WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO})
CONTROLS = frozenset({"fixed", "increment", "decrement", "randomize"})
# Settings of SpeCa that a graph may be there to show: not refreshed.
SHOWN = ("mode", "target_speedup")
# Kinds that exist in the frontend only.
VIRTUAL = frozenset({"MarkdownNote", "Note"})
TITLE_HEIGHT = 30


def paths() -> list[Path]:
    return sorted(FOLDER.glob("*.json"))


def load(path: Path) -> Workflow:
    return json.loads(path.read_text(encoding="utf-8"))


# --- What a graph says ----------------------------------------------------------------------------------------------


def widgets_of(input_types: Mapping[str, Any]) -> dict[str, bool]:
    """The widgets of a node in the order of `widgets_values`: name -> whether a "control after generate" follows it.

    `input_types` is what the node's `INPUT_TYPES()` returns.
    """
    widgets = {}
    for section in ("required", "optional"):
        for name, (kind, *rest) in input_types.get(section, {}).items():
            options = rest[0] if rest else {}
            if isinstance(kind, list) or (kind in WIDGET_TYPES and not options.get("forceInput")):
                widgets[name] = bool(options.get("control_after_generate")) or (
                    kind == "INT" and name in ("seed", "noise_seed")
                )
    return widgets


def widget_values(node: Mapping[str, Any], input_types: Mapping[str, Any]) -> dict[str, Any]:
    """A saved node's `widgets_values` by name. Raises `ValueError` when there are more than the node has, or fewer.

    Optional ones may be missing at the end: a newer ComfyUI's node has gained them since the graph was saved.
    """
    values = list(node.get("widgets_values", []))
    named = dict(_named(values, input_types, node["type"]))
    if values:
        raise ValueError(f"{node['type']} has values of no widget: {values}")
    return named


def _named(values: list[Any], input_types: Mapping[str, Any], kind: str, under: str = "") -> Iterator[tuple[str, Any]]:
    """The values by name, taken off the list; a choice that brings inputs of its own is followed by theirs."""
    optional = input_types.get("optional", {})
    for name, controlled in widgets_of(input_types).items():
        if not values:
            if name in optional:
                continue
            raise ValueError(f"{kind} has no value for {under}{name}")
        value = values.pop(0)
        yield under + name, value
        if controlled and (not values or values.pop(0) not in CONTROLS):
            raise ValueError(f"{kind} does not say what happens to {under}{name} after a run")
        described = optional.get(name) or input_types["required"][name]
        if described[0] == DYNAMIC_COMBO:
            chosen = next(choice for choice in described[1]["options"] if choice["key"] == value)
            yield from _named(values, chosen["inputs"], kind, f"{under}{name}.")


def links_of(workflow: Workflow) -> dict[int, tuple[int, int, int, int]]:
    """Link id -> (origin node, its output, target node, its input)."""
    return {link[0]: tuple(link[1:5]) for link in workflow["links"]}


def to_api(workflow: Workflow, node_types: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """What the frontend would queue: node id -> {"class_type", "inputs"}. `node_types`: kind -> its `INPUT_TYPES()`."""
    links = links_of(workflow)
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in VIRTUAL:
            continue
        inputs: dict[str, Any] = widget_values(node, node_types[node["type"]])
        for entry in node["inputs"]:
            if entry["link"] is not None:
                origin, slot, *_ = links[entry["link"]]
                inputs[entry["name"]] = [str(origin), slot]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def without_gained(queued: Prompt, known: Prompt, node_types: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """`queued` without what nodes have gained since `known` was saved: optional inputs, which a page fills in."""
    kept = {}
    for key, node in queued.items():
        optional = node_types[node["class_type"]].get("optional", {})
        said = known[key]["inputs"] if key in known else {}
        inputs = {n: v for n, v in node["inputs"].items() if n in said or n.partition(".")[0] not in optional}
        kept[key] = {**node, "inputs": inputs}
    return kept


def rectangle(node: Mapping[str, Any]) -> Rectangle:
    """(left, top, right, bottom) on the canvas, title included; `pos` is below the title."""
    (x, y), (width, height) = node["pos"], node["size"]
    return (x, y - TITLE_HEIGHT, x + width, y + height)


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def overlapping(nodes: list[dict[str, Any]]) -> Iterator[tuple[Any, Any]]:
    """The ids of each two nodes that lie over one another."""
    for i, node in enumerate(nodes):
        for other in nodes[i + 1 :]:
            if overlap(rectangle(node), rectangle(other)):
                yield node["id"], other["id"]


# --- Small stand-ins for large files --------------------------------------------------------------------------------


class TinyTextEncoder:
    """A node in place of DualCLIPLoader: its CLIP gives features that depend on the text, in `tiny_models`' widths."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        return {"required": {"model": ("STRING", {})}}

    def load(self, model: str) -> tuple[Any]:
        import tiny_models

        class TextEncoder:
            def tokenize(self, text: str) -> str:
                return text

            def encode_from_tokens_scheduled(self, tokens: str) -> Any:
                return tiny_models.SPECS[model].prompt.encode(sum(tokens.encode()))

        return (TextEncoder(),)


def shrink(prompt: Prompt, model: str | None) -> Prompt:
    """The same graph on a tiny model of `tiny_models`: its UNETLoader and text encoders replaced, its latents small.

    VAELoader and SpeCaDiTLoader stay; `write_tiny_files` gives them files. `model` is None where there is no other
    loader.
    """
    stand_ins = {
        "UNETLoader": ("TinyModelLoader", {"name": model, "weights_seed": 0, "batch_size": 1}),
        "CLIPLoader": ("TinyTextEncoder", {"model": model}),
        "DualCLIPLoader": ("TinyTextEncoder", {"model": model}),
    }
    smaller = {
        "EmptySD3LatentImage": {"width": 64, "height": 64},
        "EmptyHunyuanLatentVideo": {"width": 64, "height": 64, "length": 9},
        "SpeCaDiTClass": {"classes": "207, 360, golden retriever"},
    }
    small = {}
    for key, node in prompt.items():
        kind, inputs = stand_ins.get(node["class_type"], (node["class_type"], node["inputs"]))
        small[key] = {"class_type": kind, "inputs": inputs | smaller.get(kind, {})}
    return small


def write_tiny_files(prompt: Prompt) -> list[Path]:
    """Write a tiny VAE and a tiny DiT under the names that the graph's loaders ask for; what was written.

    They are files of kinds that ComfyUI and SpeCa know, so the graph's own loaders read them. Random weights.
    """
    import folder_paths
    import safetensors.torch
    import torch

    video = any(node["class_type"] == "EmptyHunyuanLatentVideo" for node in prompt.values())
    dit = any(node["class_type"] == "SpeCaDiTLoader" for node in prompt.values())
    written = []
    for node in prompt.values():
        if node["class_type"] == "VAELoader":
            path = Path(folder_paths.get_folder_paths("vae")[0]) / node["inputs"]["vae_name"]
            state_dict = _tiny_video_vae() if video else _tiny_vae(4 if dit else 16)
            path.parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(state_dict, path)
        elif node["class_type"] == "SpeCaDiTLoader":
            path = Path(folder_paths.get_folder_paths("diffusion_models")[0]) / node["inputs"]["model_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(_tiny_dit(), path)
        else:
            continue
        written.append(path)
    return written


def _tiny_vae(channels: int) -> dict[str, Any]:
    from comfy.taesd.taesd import TAESD

    from tiny_models import randomise

    network = TAESD(latent_channels=channels)
    randomise(network)
    return network.state_dict()


def _tiny_video_vae() -> dict[str, Any]:
    import torch
    from comfy.taesd.taehv import TAEHV

    from tiny_models import randomise

    network = TAEHV(latent_channels=16)
    randomise(network)
    return {name: tensor.to(torch.float16) for name, tensor in network.state_dict().items()}


def _tiny_dit() -> dict[str, Any]:
    from dataclasses import replace

    import dit_helpers

    return dit_helpers.authors_state_dict(replace(dit_helpers.TINY, num_classes=1000, num_heads=1))


# --- Refreshing -----------------------------------------------------------------------------------------------------


def refreshed(text: str, input_types: Mapping[str, Any]) -> str:
    """A graph's file, UI or API format, with every SpeCa node at its defaults.

    Inputs that the node has gained or lost since are followed; all else stays as it is.
    """
    graph = json.loads(text)
    described = {**input_types.get("required", {}), **input_types.get("optional", {})}
    defaults = {name: described[name][1]["default"] for name in widgets_of(input_types)}
    if "nodes" not in graph:
        for node in graph.values():
            if node["class_type"] == "SpeCa":
                links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
                node["inputs"] = defaults | links
    else:
        for node in graph["nodes"]:
            if node["type"] == "SpeCa":
                _refresh_node(node, defaults, described)
    indent = len(text.split("\n")[1]) - len(text.split("\n")[1].lstrip())
    return json.dumps(graph, indent=indent, ensure_ascii=False) + "\n"


def _refresh_node(node: dict[str, Any], defaults: Mapping[str, Any], described: Mapping[str, Any]) -> None:
    before = {entry["name"]: entry for entry in node["inputs"]}
    model = [entry for entry in node["inputs"] if "widget" not in entry]
    had = dict(zip((name for name in before if "widget" in before[name]), node["widgets_values"], strict=True))
    values = {**defaults, **{name: had[name] for name in SHOWN if name in had}}
    widgets = []
    for name in defaults:
        kind = described[name][0]
        new = {
            "name": name,
            "type": "COMBO" if isinstance(kind, list) else kind,
            "widget": {"name": name},
            "link": None,
        }
        widgets.append(before.get(name, new))
    node["inputs"] = model + widgets
    node["widgets_values"] = list(values.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is not up to date")
    action.add_argument("--refresh", action="store_true", help="write the node's present defaults")
    arguments = parser.parse_args()

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import comfy_env

    if not comfy_env.prepare():
        sys.exit("there is no ComfyUI: run `python dev.py setup`, or set COMFYUI_PATH")
    from speca_pack.nodes.speca import SpeCa

    stale = 0
    for path in [*paths(), *sorted(DEMO.glob("*.json")), *sorted(DEMO.glob("example_workflows/*.json"))]:
        text = path.read_text(encoding="utf-8")
        new = refreshed(text, SpeCa.INPUT_TYPES())
        if json.loads(new) == json.loads(text):
            continue
        stale += 1
        print(f"{'refreshed' if arguments.refresh else 'not at the defaults'}: {path.relative_to(ROOT)}")
        if arguments.refresh:
            path.write_text(new, encoding="utf-8", newline="\n")
    if not stale:
        print("all graphs are at the defaults")
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
