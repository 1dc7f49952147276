"""The node `SpeCa`: settings in, patched MODEL out."""

from __future__ import annotations

from comfy_api.latest import io

from ..speca.comfyui.attach import attach
from ..speca.config import CACHE_DEVICES, MODES, SpeCaConfig
from ..speca.forecast import FORECASTERS, MAX_ORDER
from ..speca.verify import ERROR_METRICS
from . import live, saved_settings
from .inputs import advanced, schema

DEFAULT = SpeCaConfig()
# Mean PSNR at 2x, 3x and 5x of 28 steps on the models left out, lowest and highest (benchmarks/results/left-out.md). At
# 1.5x none was measured.
EXPECTED = (
    "On seventeen small trained models at 28 steps, PSNR against the picture without SpeCa was 42 to 68 dB at 2x, 27 "
    "to 60 at 3x and 24 to 45 at 5x; at 1.5x more than at 2x."
)
# Mean PSNR at a threshold over the models left out and 20, 28 and 50 steps, and its standard deviation (the same file).
QUALITY = (
    "On seventeen small trained models PSNR against the picture without SpeCa was 48 dB at 0.1, 43 at 0.2, 38 at 0.4 "
    "and 34 at 0.8, give or take 6."
)
# What people search for who want this.
ALIASES = [
    "cache",
    "caching",
    "speed up",
    "faster",
    "acceleration",
    "teacache",
    "easycache",
    "magcache",
    "taylorseer",
    "first block cache",
    "speculative",
]


class SpeCa(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpeCa",
            display_name="SpeCa",
            category="SpeCa",
            essentials_category="Image Generation",
            search_aliases=ALIASES,
            description="Speeds up a diffusion transformer: forecasts steps instead of computing them, checks the "
            "forecasts with the model's own last block, and computes what fails the check. Connect it between "
            "the model (and its LoRAs) and the sampler.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A transformer model: FLUX, HunyuanVideo, DiT and others. Models "
                    "without an adapter (SD 1.5, SDXL) pass through unchanged.",
                ),
                io.Float.Input(
                    "threshold",
                    optional=True,
                    default=DEFAULT.threshold,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.001,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How wrong a forecast may be, by what that does to the final picture. Higher: faster, and "
                    "the picture drifts away from the one without SpeCa. Lower: slower and closer to it. It asks for a "
                    f"quality, and means much the same on every model. {QUALITY} "
                    "0: computes every step, the picture is identical to the unpatched model's.",
                ),
                io.Int.Input(
                    "order",
                    optional=True,
                    default=DEFAULT.order,
                    min=0,
                    max=MAX_ORDER,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="How curved a forecast may be: 0 repeats the last computed step, 1 continues it in a "
                    "straight line, 2 in a parabola. Higher follows smooth runs further and takes one more "
                    "cached step of memory each. A forecast that would amplify noise goes up in order "
                    "only part of the way, by itself.",
                ),
                advanced(
                    io.Float.Input(
                        "threshold_end_factor",
                        default=DEFAULT.threshold_end_factor,
                        min=0.01,
                        max=100.0,
                        step=0.05,
                        tooltip="The threshold at the end of the run, as a multiple of the one at its start (the "
                        "paper's beta). 1: the same all along. Below 1: strict late, when the fine detail is drawn, as "
                        "in the paper. Above 1: strict early, when the composition forms, and generous late.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "accumulate_error",
                        default=DEFAULT.accumulate_error,
                        tooltip="On: the errors since the last computed step add up, so many small ones end in a "
                        "computed step too. Off: each step's error is compared alone, the paper's rule; faster at "
                        "the same threshold, with more drift.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "warmup_steps",
                        default=DEFAULT.warmup_steps,
                        min=1,
                        max=50,
                        tooltip="The first steps that are always computed. More keeps the composition closer to the "
                        "uncached picture; fewer is faster.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "max_consecutive",
                        default=DEFAULT.max_consecutive,
                        min=1,
                        max=100,
                        tooltip="The most forecast steps in a row before one is computed, however small their errors.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "start_percent",
                        default=DEFAULT.start_percent,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="Steps before this part of the run are always computed (0 = from the start).",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "end_percent",
                        default=DEFAULT.end_percent,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="Steps after this part of the run are always computed (1 = to the end). A value such "
                        "as 0.95 gives the finest detail computed steps.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "error_metric",
                        options=list(ERROR_METRICS),
                        default=DEFAULT.error_metric,
                        tooltip="How the error is measured. relative_l2 (the paper's) predicts the visible error best; "
                        "the threshold means something else under another metric.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "forecaster",
                        options=list(FORECASTERS),
                        default=DEFAULT.forecaster,
                        tooltip="The formula of the forecast. newton is exact on any step spacing; taylor is the "
                        "released TaylorSeer rule, hermite HiCache's damped form, ridge a fitted Chebyshev curve, "
                        "reuse repeats the last computed step.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "cache_device",
                        options=list(CACHE_DEVICES),
                        default=DEFAULT.cache_device,
                        tooltip="Where the cached steps are kept. auto: on the GPU while they take less than a quarter "
                        "of its free memory, else in system memory. cpu saves VRAM and costs a copy per step.",
                    )
                ),
                io.Combo.Input(
                    "mode",
                    optional=True,
                    options=list(MODES),
                    default=DEFAULT.mode,
                    tooltip="threshold: the threshold decides what is computed. speed: target_speedup does, and the "
                    "threshold does not count, even if connected: each step's own is chosen so that the run ends at "
                    f"that speed. A name asks for the speed beside it. {EXPECTED}",
                ),
                io.Float.Input(
                    "target_speedup",
                    optional=True,
                    default=DEFAULT.target_speedup,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    round=0.01,
                    tooltip="In mode speed only: how many times as fast as without SpeCa the run shall be, in measured "
                    "time. What a run could not reach, and why, stands in the panel and in the report.",
                ),
                io.Combo.Input(
                    "saved_settings",
                    optional=True,
                    options=saved_settings.names(),
                    default=saved_settings.NONE,
                    tooltip="Settings that SpeCa Tune saved by name, in the place of those above. Found on another "
                    "model they are used all the same, and the log and the panel say so.",
                ),
                # Last, for old workflows: their values are read by position.
                advanced(
                    io.Int.Input(
                        "check_every",
                        default=DEFAULT.check_every,
                        min=1,
                        max=10,
                        tooltip="Of the forecasts in a row, each so-many-th is checked. One between is used unchecked "
                        "only where the error to be expected from the last check is within the threshold; the panel "
                        "shows it as a ring. 1: every forecast is checked. 2: every second. More is faster, and sees "
                        "later what went wrong.",
                    )
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with SpeCa attached. The input model is not changed.")],
            hidden=[io.Hidden.unique_id],
            # The node's id is no part of ComfyUI's cache key: two nodes with equal settings would share one MODEL, and
            # the runs of both would show on the first.
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model, **settings) -> io.NodeOutput:
        name = settings.pop("saved_settings", saved_settings.NONE)
        config, note = saved_settings.applied(name, SpeCaConfig(**settings), model.model)
        return io.NodeOutput(attach(model, config, live.listener, live.origin_of(cls), note))


NODES = [SpeCa]
