"""The node `SpeCaReport`: what a run with SpeCa did, as numbers and as JSON."""

from __future__ import annotations

import json

from comfy_api.latest import io

from ..speca.comfyui.attach import attachment_of
from .inputs import schema


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
            raise ValueError(
                "No SpeCa on this model. Connect the MODEL output of a SpeCa node to the sampler and to this node."
            )
        run = attachment.run_of(samples["samples"])
        if run is None:
            raise ValueError(
                "SpeCa has seen no run of this model yet. Connect the same MODEL to the sampler, and the sampler's "
                "LATENT to this node."
            )
        report = json.dumps(run.to_json())
        totals = run.totals
        return io.NodeOutput(
            samples, totals.speedup or 1.0, totals.full + totals.rejected, report, ui={"speca": [report]}
        )


NODES = [SpeCaReport]
