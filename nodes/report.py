"""The node `SpeCaReport`: what a run with SpeCa did, as numbers and as JSON."""

from __future__ import annotations

import json
import logging

from comfy_api.latest import io

from ..speca import events
from ..speca.comfyui.attach import attachment_of
from .inputs import schema

log = logging.getLogger(__name__)


class SpeCaReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpeCaReport",
            display_name="SpeCa Report",
            category="SpeCa",
            search_aliases=["cache report", "speedup", "measure cache", "teacache report"],
            description="Reports what SpeCa did in the run that made these samples: measured speedup, computed steps, "
            "and every step as JSON. Connect it after the sampler.",
            inputs=[
                io.Latent.Input("samples", tooltip="The sampler's output. Passed through unchanged."),
                io.Model.Input("model", tooltip="The MODEL that the sampler used, with SpeCa attached."),
            ],
            outputs=[
                io.Latent.Output(display_name="samples", tooltip="The samples as they came."),
                io.Float.Output(
                    display_name="speedup",
                    tooltip="Measured wall-clock speedup: what the run's calls would have taken at the measured cost "
                    "of its full calls, over what they took, checks and rejections included. 1 if nothing was skipped.",
                ),
                io.Int.Output(
                    display_name="full_calls",
                    tooltip="Calls of the model that were computed in full, rejected ones included.",
                ),
                io.String.Output(display_name="report", tooltip="The whole run as JSON, every call with its error."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples, model) -> io.NodeOutput:
        attachment = attachment_of(model)
        if attachment is None:
            return _nothing(samples, "no SpeCa on this model")
        run = attachment.run_of(samples["samples"])
        if run is None:
            return _nothing(samples, "no match: these samples come from no run of this model that is still known")
        report = json.dumps(run.to_json())
        totals = run.totals
        return io.NodeOutput(
            samples, totals.speedup or 1.0, totals.full + totals.rejected, report, ui={"speca": [report]}
        )


def _nothing(samples, why: str) -> io.NodeOutput:
    """Passes the samples on where there are no figures, and says why: a bypassed node must not fail the prompt."""
    log.warning("SpeCa Report: %s", why)
    return io.NodeOutput(samples, 1.0, 0, json.dumps({"version": events.VERSION, "native": why}))


NODES = [SpeCaReport]
