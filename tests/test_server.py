"""The pack in a real ComfyUI server process: import, nodes, a graph over HTTP, its events over the websocket."""

from __future__ import annotations

import itertools
import json
import urllib.error

import pytest

import comfy_server

STEPS = 12
NODES = {"SpeCa", "SpeCaReport", "SpeCaDiTLoader", "SpeCaDiTClass", "SpeCaDiTLatent"}
# ComfyUI runs nothing for a graph that it has run already.
seeds = itertools.count(1000)


def graph(server: comfy_server.Server, **settings: object) -> dict:
    """TinyModelLoader (flux) -> SpeCa, at its defaults but for `settings` -> KSampler -> SpeCaReport -> SaveLatent."""
    inputs = server.get("/object_info/SpeCa")["SpeCa"]["input"]
    described = {**inputs["required"], **inputs.get("optional", {})}
    defaults = {name: entry[1]["default"] for name, entry in described.items() if "default" in entry[1]}
    return {
        "1": {"class_type": "TinyModelLoader", "inputs": {"name": "flux", "weights_seed": 0, "batch_size": 1}},
        "2": {"class_type": "SpeCa", "inputs": {"model": ["1", 0], **defaults, **settings}},
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["2", 0],
                "latent_image": ["1", 1],
                "positive": ["1", 2],
                "negative": ["1", 3],
                "seed": next(seeds),
                "steps": STEPS,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "4": {"class_type": "SpeCaReport", "inputs": {"samples": ["3", 0], "model": ["2", 0]}},
        "5": {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "test"}},
    }


def speca_events(events: list, prompt_id: str) -> list[dict]:
    """What the pack sent about one prompt; a broadcast about an earlier one may still arrive."""
    return [data for name, data in events if name == "speca" and data["prompt_id"] == prompt_id]


def wait_for_end(client: comfy_server.Client, prompt_id: str) -> list[dict]:
    """The prompt's events; they leave on their own thread and may arrive after the end of the prompt."""
    client.wait_for(lambda events: any(data["type"] == "run_ended" for data in speca_events(events, prompt_id)))
    return speca_events(client.events, prompt_id)


def test_nothing_failed_to_import(server: comfy_server.Server) -> None:
    assert server.failed_imports() == []
    assert "could not be loaded" not in server.log()


def test_the_server_lists_every_node_with_a_tooltip_for_every_input(server: comfy_server.Server) -> None:
    listed = server.get("/object_info")
    assert listed.keys() >= NODES
    for name in NODES:
        node = listed[name]
        assert node["category"].partition("/")[0] == "SpeCa"
        assert node["description"]
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert [key for key, entry in inputs.items() if not entry[1].get("tooltip")] == []


def test_a_graph_over_http_and_websocket(server: comfy_server.Server) -> None:
    with server.client() as client:
        # High enough that random weights, too, have forecasts accepted.
        prompt_id = client.queue(graph(server, threshold=1.0, accumulate_error=False))
        run = client.follow(prompt_id)
        assert run.status == "success", server.log()
        events = wait_for_end(client, prompt_id)

    report = json.loads(run.outputs["4"]["speca"][0])
    assert report["totals"]["calls"] == STEPS
    assert report["totals"]["accepted"] > 0
    assert run.outputs["5"]["latents"][0]["filename"].startswith("test")

    assert [event["type"] for event in events][:1] == ["run_started"]
    assert [event["type"] for event in events][-1:] == ["run_ended"]
    assert {event["node_id"] for event in events} == {"2"}
    calls = [call for event in events if event["type"] == "calls" for call in event["calls"]]
    assert [call["outcome"] for call in calls] == [call["outcome"] for call in report["calls"]]
    assert events[-1]["totals"] == report["totals"]
    assert f"SpeCa: {STEPS} calls" in server.log()


def test_the_route_still_has_the_run_for_a_page_that_comes_later(server: comfy_server.Server) -> None:
    with server.client() as client:
        run = client.run(graph(server))
    report = json.loads(run.outputs["4"]["speca"][0])
    assert report["run_id"] in [kept["run_id"] for kept in server.get("/speca/runs")["runs"]]
    assert server.get(f"/speca/runs/{report['run_id']}")["calls"] == report["calls"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/speca/runs/unknown")


def test_a_second_window_receives_the_events_of_a_run_that_it_did_not_queue(server: comfy_server.Server) -> None:
    with server.client() as first, server.client() as second:
        prompt_id = first.queue(graph(server))
        received = wait_for_end(second, prompt_id)
        first.follow(prompt_id)
        assert received == wait_for_end(first, prompt_id)


@pytest.mark.parametrize(("setting", "value"), [("threshold", -1.0), ("order", 99)])
def test_a_number_out_of_range_is_refused_by_name(server: comfy_server.Server, setting: str, value: float) -> None:
    with server.client() as client, pytest.raises(ValueError, match=setting):
        client.queue(graph(server, **{setting: value}))


def test_an_unknown_choice_fails_with_the_known_ones(server: comfy_server.Server) -> None:
    """Refused by newer versions of ComfyUI; older ones do not check the choices of V3 nodes before the run."""
    with server.client() as client:
        try:
            run = client.run(graph(server, forecaster="oracle"))
        except ValueError as refused:
            message = str(refused)
        else:
            assert run.status == "error"
            message = run.sent("execution_error")[0]["exception_message"]
    assert "oracle" in message
    assert "newton" in message
