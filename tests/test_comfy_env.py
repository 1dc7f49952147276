"""The test environment itself: what other tests rely on without looking."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

import comfy_env
import comfy_server
import tiny_models


def tiny_graph(name: str = "flux", *, seed: int = 1, steps: int = 4) -> dict:
    return {
        "1": {"class_type": "TinyModelLoader", "inputs": {"name": name, "weights_seed": 0, "batch_size": 1}},
        "2": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "latent_image": ["1", 1],
                "positive": ["1", 2],
                "negative": ["1", 3],
                "seed": seed,
                "steps": steps,
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "3": {"class_type": "TinyLatentProbe", "inputs": {"samples": ["2", 0], "name": f"probe-{name}-{seed}"}},
    }


def test_the_root_is_not_on_the_path() -> None:
    import speca

    assert str(comfy_env.ROOT) not in sys.path
    assert speca.__file__ == str(comfy_env.ROOT / "speca" / "__init__.py")


def test_one_module_object_under_every_name() -> None:
    import speca.events

    assert importlib.import_module("speca_pack.speca.events") is speca.events
    assert importlib.import_module("speca_pack.speca") is sys.modules["speca"]
    # Importing under another name must not change what relative imports inside the module resolve against.
    assert speca.events.__spec__.name == "speca.events"
    assert speca.events.__package__ == "speca"


def test_a_missing_module_is_named_as_it_was_asked_for() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"speca_pack\.speca\.nothing"):
        importlib.import_module("speca_pack.speca.nothing")


@pytest.mark.parametrize("name", tiny_models.SPECS)
def test_tiny_models_sample_finite_and_repeatably(comfy: None, name: str) -> None:
    tiny = tiny_models.build(name)
    first = tiny_models.ksample(*tiny, steps=2)
    assert torch.isfinite(first).all()
    assert first.std() > 0
    assert torch.equal(first, tiny_models.ksample(*tiny, steps=2))


def test_tiny_models_differ_by_seed(comfy: None) -> None:
    one, other = (tiny_models.ksample(*tiny_models.build("flux", seed), steps=2) for seed in (0, 1))
    assert not torch.equal(one, other)


def test_a_graph_through_the_executor_gives_what_the_sampler_gives(graphs: comfy_env.Graphs) -> None:
    result = graphs.run(tiny_graph())
    assert result.success, result.error
    expected = tiny_models.ksample(*tiny_models.build("flux")._replace(cfg=1.0), steps=4, seed=1)
    assert torch.equal(torch.load(result.outputs["3"]["latent"][0]), expected)
    assert [data["node"] for data in result.sent("executing")] == ["1", "2", "3"]


def test_a_failing_node_is_reported(graphs: comfy_env.Graphs) -> None:
    graph = tiny_graph()
    graph["3"]["inputs"]["name"] = "no/such/folder"
    result = graphs.run(graph)
    assert not result.success
    assert result.error is not None
    assert result.error["node_id"] == "3"


def test_a_wrong_graph_is_refused(graphs: comfy_env.Graphs) -> None:
    graph = tiny_graph()
    graph["2"]["inputs"]["sampler_name"] = "no_such_sampler"
    with pytest.raises(comfy_env.InvalidGraphError, match="no_such_sampler"):
        graphs.run(graph)


def test_a_graph_through_the_server_gives_what_the_sampler_gives(server: comfy_server.Server) -> None:
    with server.client() as client:
        run = client.run(tiny_graph(seed=2))
    assert run.status == "success", server.log()
    assert run.sent("execution_success")
    expected = tiny_models.ksample(*tiny_models.build("flux")._replace(cfg=1.0), steps=4, seed=2)
    # The server runs with ComfyUI's default attention for a CPU.
    torch.testing.assert_close(torch.load(run.outputs["3"]["latent"][0]), expected, rtol=1e-3, atol=1e-3)
