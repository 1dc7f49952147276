"""The nodes as classes: what a prompt must send, what a search finds, and calls from a script."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import tiny_models

pytestmark = pytest.mark.comfy

# Widgets in the order in which saved workflows have their values.
WIDGETS = {
    "SpeCa": [
        *("threshold", "order", "threshold_end_factor", "accumulate_error", "warmup_steps", "max_consecutive"),
        *("start_percent", "end_percent", "error_metric", "forecaster", "cache_device"),
        *("mode", "target_speedup", "saved_settings", "check_every"),
    ],
    "SpeCaReport": [],
    "SpeCaCompare": ["true_errors"],
    "SpeCaSweep": ["thresholds", "seeds", "filename_prefix"],
    "SpeCaTune": ["goal", "speed", "psnr", "save_as", "memory_limit_gb"],
    "SpeCaDiTLoader": ["model_name", "weight_dtype"],
    "SpeCaDiTClass": ["imagenet_class", "classes"],
    "SpeCaDiTLatent": ["batch_size", "width", "height"],
}
REQUIRED = {
    "SpeCa": {"model"},
    "SpeCaReport": {"samples", "model"},
    "SpeCaCompare": {"noise", "guider", "sampler", "sigmas", "latent_image"},
    "SpeCaSweep": {"noise", "guider", "sampler", "sigmas", "latent_image"},
    "SpeCaTune": {"noise", "guider", "sampler", "sigmas", "latent_image"},
    "SpeCaDiTLoader": {"model_name"},
    "SpeCaDiTClass": set(),
    "SpeCaDiTLatent": {"model"},
}


@pytest.fixture(params=sorted(WIDGETS))
def node(request: pytest.FixtureRequest, comfy: None) -> Any:
    import speca_pack.nodes.compare
    import speca_pack.nodes.dit
    import speca_pack.nodes.report
    import speca_pack.nodes.speca
    import speca_pack.nodes.sweep
    import speca_pack.nodes.tune

    nodes = speca_pack.nodes
    families = (nodes.speca, nodes.report, nodes.compare, nodes.tune, nodes.sweep, nodes.dit)
    by_id = {cls.define_schema().node_id: cls for family in families for cls in family.NODES}
    assert sorted(by_id) == sorted(WIDGETS)
    return by_id[request.param]


class TestInputs:
    def test_a_prompt_must_send_only_what_has_no_default(self, node: Any) -> None:
        schema = node.define_schema()
        assert {i.id for i in schema.inputs if not i.optional} == REQUIRED[schema.node_id]
        for an_input in schema.inputs:
            if (an_input.extra_dict or {}).get("advanced"):
                assert an_input.optional
                assert an_input.default is not None

    def test_widgets_keep_their_order(self, node: Any) -> None:
        """In a page, required ones come before optional ones: values of saved workflows must still fit."""
        given = node.INPUT_TYPES()
        names = [*given.get("required", {}), *given.get("optional", {})]
        connections = {"model", "samples", "vae", *REQUIRED["SpeCaCompare"]}
        assert [name for name in names if name not in connections] == WIDGETS[node.define_schema().node_id]

    def test_a_graph_with_the_model_alone(self, graphs: Any) -> None:
        from speca.config import SpeCaConfig
        from test_graph import graph, report

        with_model_alone = graph()
        with_model_alone["2"]["inputs"] = {"model": ["1", 0]}
        result = graphs.run(with_model_alone)
        assert result.success, result.error
        assert report(result)["settings"] == SpeCaConfig().to_json()
        assert report(result)["totals"]["calls"] == 12


class TestSearch:
    def test_it_is_found_by_what_people_look_for(self, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a schema that knows the fields, which the pinned ComfyUI's does not."""
        from speca_pack.nodes import inputs

        fields = [("search_aliases", list, dataclasses.field(default_factory=list)), ("essentials_category", str, None)]
        known = {field.name for field in dataclasses.fields(inputs.io.Schema)}
        missing = [field for field in fields if field[0] not in known]
        newer = dataclasses.make_dataclass("Schema", missing, bases=(inputs.io.Schema,))
        monkeypatch.setattr(inputs.io, "Schema", newer)
        schema = node.define_schema()
        assert schema.search_aliases
        if schema.node_id == "SpeCa":
            assert {"teacache", "easycache", "cache", "speed up"} <= set(schema.search_aliases)
            assert schema.essentials_category

    def test_an_older_schema_is_not_given_them(self, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from speca_pack.nodes import inputs

        taken: list[str] = []

        class Older:
            def __init__(self, node_id: str, display_name: str, category: str, description: str, **rest: Any) -> None:
                taken.extend(rest)

        older = {"inputs", "outputs", "hidden", "is_output_node", "not_idempotent"}

        def signature(_: Any) -> Any:
            return type("Signature", (), {"parameters": dict.fromkeys(older)})

        monkeypatch.setattr(inputs.io, "Schema", Older)
        monkeypatch.setattr(inputs.inspect, "signature", signature)
        node.define_schema()
        assert set(taken) <= older

    def test_a_field_that_no_version_knows_is_refused(self, comfy: None) -> None:
        from speca_pack.nodes.inputs import schema

        with pytest.raises(TypeError, match="serch_aliases"):
            schema(node_id="X", serch_aliases=["typo"])


class TestFromAScript:
    """A script calls the class: there is no graph, so `cls.hidden` is None, and no server that listens."""

    def test_a_run_and_its_report(self, comfy: None) -> None:
        from speca_pack.nodes.report import SpeCaReport
        from speca_pack.nodes.speca import SpeCa

        assert SpeCa.hidden is None
        tiny = tiny_models.build("flux")
        (patched,) = SpeCa.execute(tiny.model_patcher, threshold=1e9, warmup_steps=1).args
        samples = tiny_models.ksample(patched, *tiny[1:], steps=6)
        passed_on, _, full_calls, report = SpeCaReport.execute({"samples": samples}, patched).args
        assert torch.equal(passed_on["samples"], samples)
        assert 0 < full_calls < 6
        assert '"node_id": null' in report

    def test_the_model_alone(self, comfy: None) -> None:
        from speca_pack.nodes.speca import SpeCa

        from speca.comfyui.attach import attachment_of
        from speca.config import SpeCaConfig

        (patched,) = SpeCa.execute(tiny_models.build("flux").model_patcher).args
        assert attachment_of(patched).config == SpeCaConfig()

    def test_dit_nodes(self, comfy: None) -> None:
        from speca_pack.nodes.dit import SpeCaDiTClass, SpeCaDiTLatent

        import dit_helpers

        positive, negative, count = SpeCaDiTClass.execute().args
        assert count == 1
        assert positive != negative
        (latent,) = SpeCaDiTLatent.execute(dit_helpers.patcher()).args
        assert latent["samples"].shape[0] == 1


def test_the_reports_trace_is_no_preview_of_the_job(comfy: None) -> None:
    """Newer ComfyUI shows a job without a picture by the text that its outputs hold; the trace is for the panel."""
    jobs = pytest.importorskip("comfy_execution.jobs", reason="this ComfyUI lists no jobs")
    if "text" not in jobs.PREVIEWABLE_MEDIA_TYPES:
        pytest.skip("this ComfyUI shows no job by a text")
    trace = '{"version": 1, "calls": []}'
    assert jobs.get_outputs_summary({"9": {"speca": [trace]}})[1] is None
    assert jobs.get_outputs_summary({"9": {"text": [trace]}})[1] is not None
