"""The node `SpeCaCompare`: a guider's model without and with SpeCa on the same noise."""

from __future__ import annotations

import json
import logging

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..speca.comfyui.asked import Asked, tensors_of
from ..speca.comfyui.compare import Comparison
from ..speca.comparison import (
    Figures,
    decibels,
    in_lines,
    is_picture,
    mean_square,
    psnr,
    relative_error,
    report,
    ssim,
    summary,
)
from .inputs import advanced, sampling, schema
from .picture import AMPLIFIED, compared

log = logging.getLogger(__name__)

NO_PICTURE = "SpeCa Compare has no picture: connect a VAE that decodes pictures to its input 'vae'."


comparison = Comparison()


class SpeCaCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpeCaCompare",
            display_name="SpeCa Compare",
            category="SpeCa",
            search_aliases=[
                "compare cache",
                "with and without",
                "benchmark cache",
                "measure speedup",
                "teacache compare",
            ],
            description="Samples with SpeCa and without it on the same noise, and shows both results, what differs and "
            "what each took. The run without SpeCa is kept: after a change of SpeCa's settings only the fast run is "
            "made.",
            inputs=[
                *sampling("both runs", "The run without SpeCa is made with the same guider."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes both results for the comparison picture, PSNR and SSIM. Without one there are the "
                    "latents, the times and the latent error.",
                ),
                advanced(
                    io.Boolean.Input(
                        "true_errors",
                        default=False,
                        tooltip="Also computes every forecast step in full, on the very same input, and reports how "
                        "wrong it truly was beside what the check judged. Costs one full step of the model for each "
                        "forecast step: about as long as the run without SpeCa. That is not counted in SpeCa's time.",
                    )
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="uncached", tooltip="The result without SpeCa."),
                io.Latent.Output(display_name="speca", tooltip="The result with SpeCa."),
                io.Image.Output(
                    display_name="comparison",
                    tooltip=f"Without SpeCa, with it, and the difference {AMPLIFIED} times stronger, side by side. Of "
                    "a video its middle frame and the frame that differs most. Needs a vae.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Seconds of both runs, speedup, PSNR, SSIM, the latent error and every call, as JSON.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, noise, guider, sampler, sigmas, latent_image, vae=None, true_errors=False) -> io.NodeOutput:
        pair = comparison.run(Asked.of(noise, guider, sampler, sigmas, latent_image), true_errors)
        uncached, speca = (tensors_of(sampled.latent) for sampled in (pair.uncached, pair.speca))
        decoded = [] if vae is None else [vae.decode(latents[0]) for latents in (uncached, speca)]
        pictures = [each for each in decoded if is_picture(each)]
        figures = Figures(
            pair.uncached.seconds,
            pair.speca.seconds,
            pair.kept,
            relative_error(speca, uncached),
            **(_quality(*pictures) if pictures else {}),
        )
        text = in_lines(report(figures, pair.record, pair.witness))
        log.info("SpeCa Compare: %s", summary(figures, pair.record))
        shown = {"speca_compare": [text]}
        if pair.record is not None:
            shown["speca"] = [json.dumps(pair.record.to_json())]
        if pictures:
            image = compared(*pictures, _titles(figures))
            shown |= ui.PreviewImage(image, cls=cls).as_dict()
        else:
            image = ExecutionBlocker(NO_PICTURE)
        return io.NodeOutput(pair.uncached.latent, pair.speca.latent, image, text, ui=shown)


def _quality(uncached, speca) -> dict[str, object]:
    frames = [x.flatten(0, -4) for x in (speca, uncached)]
    value, by = ssim(*frames)
    return {"psnr": psnr(mean_square(*frames).mean().item()), "ssim": value, "ssim_by": by}


def _titles(figures: Figures) -> list[str]:
    speed = "" if figures.speedup is None else f", {figures.speedup:.2f}x"
    assert figures.psnr is not None
    return [
        f"without SpeCa, {figures.uncached_seconds:.2f} s",
        f"with SpeCa, {figures.speca_seconds:.2f} s{speed}",
        f"difference x{AMPLIFIED}, PSNR {decibels(figures.psnr)}",
    ]


NODES = [SpeCaCompare]
