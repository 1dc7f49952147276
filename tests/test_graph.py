"""Whole graphs through ComfyUI's real executor: nodes, report, and what a run leaves behind."""

from __future__ import annotations

import json
import logging

import pytest
import torch

pytestmark = pytest.mark.comfy

SETTINGS = {
    "threshold": 0.6,
    "order": 1,
    "threshold_end_factor": 4.0,
    "accumulate_error": False,
    "warmup_steps": 2,
    "max_consecutive": 8,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "error_metric": "relative_l2",
    "forecaster": "newton",
    "cache_device": "auto",
}


def graph(model="flux", *, speca=True, seed=1, steps=12, batch=1, cfg=1.0, **settings):
    """TinyModelLoader -> SpeCa -> KSampler -> SpeCaReport -> probe. Ids: 1 loader, 2 SpeCa, 3 sampler, 4 report."""
    nodes = {
        "1": ("TinyModelLoader", {"name": model, "weights_seed": 0, "batch_size": batch}),
        "2": ("SpeCa", {"model": ["1", 0], **SETTINGS, **settings}),
        "3": (
            "KSampler",
            {
                "model": ["2" if speca else "1", 0],
                "latent_image": ["1", 1],
                "positive": ["1", 2],
                "negative": ["1", 3],
                "seed": seed,
                "steps": steps,
                "cfg": cfg,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        ),
        "4": ("SpeCaReport", {"samples": ["3", 0], "model": ["2", 0]}),
        "5": ("TinyLatentProbe", {"samples": ["4" if speca else "3", 0], "name": "latent"}),
    }
    if not speca:
        del nodes["2"], nodes["4"]
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def latent(result):
    return torch.load(result.outputs["5"]["latent"][0], weights_only=True)


def report(result, node="4"):
    return json.loads(result.outputs[node]["speca"][0])


def test_a_graph_speculates_and_reports_it(graphs, caplog):
    caplog.set_level(logging.INFO)
    result = graphs.run(graph())
    assert result.success, result.error
    run = report(result)
    totals = run["totals"]
    assert totals["calls"] == len(run["calls"]) == 12
    assert sum(totals[outcome] for outcome in ("full", "accepted", "trusted", "rejected")) == 12
    assert totals["accepted"] > 0
    assert run["version"] == 1
    assert (run["node_id"], run["sampler_node_id"], run["prompt_id"]) == ("2", "3", result.prompt_id)
    assert (run["model"], run["architecture"], run["status"]) == ("Flux", "flux", "finished")
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("SpeCa: 12 calls")]
    assert len(lines) == 1
    assert f"{totals['accepted']} accepted" in lines[0]


def test_threshold_zero_gives_the_picture_of_the_unpatched_model(graphs):
    plain = latent(graphs.run(graph(speca=False)))
    result = graphs.run(graph(threshold=0.0))
    assert torch.equal(latent(result), plain)
    assert report(result)["totals"] | {"seconds": 0, "speedup": 0} == {
        "calls": 12, "full": 12, "accepted": 0, "trusted": 0, "rejected": 0,
        "seconds": 0, "speedup": 0, "cache_bytes": 0,
    }  # fmt: skip


def test_changing_only_the_seed_starts_a_fresh_run_on_the_cached_model(graphs):
    """The SpeCa node does not run again; nothing of the first run may be left on the MODEL it returned."""
    first = graphs.run(graph(seed=1))
    second = graphs.run(graph(seed=2))
    assert "2" not in {d.get("node") for d in second.sent("executing") if d}
    graphs.forget()
    alone = graphs.run(graph(seed=2))
    assert torch.equal(latent(second), latent(alone))
    outcomes = [[c["outcome"] for c in report(r)["calls"]] for r in (first, second, alone)]
    assert outcomes[1] == outcomes[2]
    assert report(first)["run_id"] != report(second)["run_id"]


def test_two_samplers_on_one_model_get_each_their_own_report(graphs):
    both = graph(seed=1, steps=12)
    both["6"] = {"class_type": "KSampler", "inputs": {**both["3"]["inputs"], "steps": 9, "seed": 5}}
    both["7"] = {"class_type": "SpeCaReport", "inputs": {"samples": ["6", 0], "model": ["2", 0]}}
    result = graphs.run(both)
    assert result.success, result.error
    assert (report(result)["steps"], report(result, "7")["steps"]) == (12, 9)
    assert (report(result)["sampler_node_id"], report(result, "7")["sampler_node_id"]) == ("3", "6")
    assert torch.equal(latent(result), latent(graphs.run(graph(seed=1, steps=12))))


def test_a_model_without_an_adapter_passes_through_and_the_log_says_so(graphs, caplog):
    caplog.set_level(logging.INFO)
    plain = latent(graphs.run(graph("sd15", speca=False)))
    result = graphs.run(graph("sd15"))
    assert result.success, result.error
    assert torch.equal(latent(result), plain)
    assert "no adapter for UNetModel" in report(result)["native"]
    assert any("no adapter for UNetModel" in r.getMessage() for r in caplog.records)


def test_too_few_steps_run_natively_and_say_so(graphs, caplog):
    caplog.set_level(logging.INFO)
    plain = latent(graphs.run(graph(speca=False, steps=3)))
    result = graphs.run(graph(steps=3))
    assert torch.equal(latent(result), plain)
    assert "3 steps are too few" in report(result)["native"]
    assert any("3 steps are too few" in r.getMessage() for r in caplog.records)


def test_two_speca_nodes_in_a_row_count_as_the_last(graphs):
    chained = graph(threshold=0.0)
    chained["8"] = {"class_type": "SpeCa", "inputs": {"model": ["1", 0], **SETTINGS}}
    chained["2"]["inputs"]["model"] = ["8", 0]
    result = graphs.run(chained)
    assert report(result)["totals"]["full"] == 12
    assert report(result)["node_id"] == "2"


def test_two_nodes_with_equal_settings_keep_their_own_runs(graphs):
    both = graph()
    both["6"] = {"class_type": "SpeCa", "inputs": {"model": ["1", 0], **SETTINGS}}
    both["7"] = {"class_type": "KSampler", "inputs": {**both["3"]["inputs"], "model": ["6", 0]}}
    both["8"] = {"class_type": "SpeCaReport", "inputs": {"samples": ["7", 0], "model": ["6", 0]}}
    result = graphs.run(both)
    assert result.success, result.error
    assert (report(result)["node_id"], report(result, "8")["node_id"]) == ("2", "6")


def test_a_lora_between_speca_and_the_sampler_keeps_both(graphs):
    """A clone downstream of SpeCa shares its attachment: the report still finds the run."""
    result = graphs.run(
        graph() | {"9": {"class_type": "ModelSamplingFlux", "inputs": {
            "model": ["2", 0], "max_shift": 1.15, "base_shift": 0.5, "width": 64, "height": 64}},
            "3": {"class_type": "KSampler", "inputs": {**graph()["3"]["inputs"], "model": ["9", 0]}}}
    )  # fmt: skip
    assert result.success, result.error
    assert report(result)["totals"]["accepted"] > 0


def test_easycache_on_the_same_model_is_left_alone(graphs):
    both = graph()
    both["9"] = {
        "class_type": "EasyCache",
        "inputs": {
            "model": ["2", 0],
            "reuse_threshold": 0.2,
            "start_percent": 0.15,
            "end_percent": 0.95,
            "verbose": False,
        },
    }
    both["3"]["inputs"]["model"] = ["9", 0]
    result = graphs.run(both)
    assert result.success, result.error
    assert "EasyCache is on this model too" in report(result)["native"]


def test_a_report_without_speca_passes_the_samples_on(graphs):
    """As behind a bypassed SpeCa node."""
    bypassed = graph(speca=False)
    bypassed["4"] = {"class_type": "SpeCaReport", "inputs": {"samples": ["3", 0], "model": ["1", 0]}}
    result = graphs.run(bypassed)
    assert result.success, result.error


def test_batches_with_guidance_report_every_sample(graphs):
    result = graphs.run(graph(batch=3, cfg=3.0))
    run = report(result)
    assert run["n_samples"] == 3
    assert all(call["n_samples"] == len(call["rows"]) == 3 for call in run["calls"])
    assert all(sorted(call["conds"]) == [0, 1] for call in run["calls"])


def test_a_run_that_fails_is_recorded_and_raises(graphs, monkeypatch):
    import comfy.ldm.flux.layers as layers

    original = layers.SingleStreamBlock.forward
    calls = {"n": 0}

    def failing(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] > 10:
            raise RuntimeError("the block broke")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(layers.SingleStreamBlock, "forward", failing)
    result = graphs.run(graph())
    assert not result.success
    assert "the block broke" in result.error["exception_message"]
    monkeypatch.undo()
    again = graphs.run(graph())
    assert again.success
    assert torch.equal(latent(again), latent(graphs.run(graph())))
