"""The node `SpeCaTune`: the settings that meet a goal on a guider's model."""

from __future__ import annotations

import functools
import json
import logging

from comfy_api.latest import io, ui

from ..speca.comfyui.asked import Asked
from ..speca.comfyui.attach import attach
from ..speca.comfyui.tune import Tuning
from ..speca.recording import GIGABYTE
from ..speca.tuning import Goal, Search, to_json, verdict
from . import live, saved_settings
from .inputs import advanced, sampling, schema, vae_for_psnr
from .quality import psnr_of_latents
from .tradeoff import Plot

log = logging.getLogger(__name__)

SPEED, QUALITY = "speed at least", "PSNR at least"


class SpeCaTune(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpeCaTune",
            display_name="SpeCa Tune",
            category="SpeCa",
            search_aliases=["tune cache", "find threshold", "optimize settings", "calibrate cache", "autotune"],
            description="Finds SpeCa's settings for a goal: the closest picture at a speed, or the fastest at a PSNR. "
            "Records one run without SpeCa, tries settings on what it recorded, and checks the best in up to three "
            "real runs.",
            inputs=[
                *sampling(
                    "all runs",
                    "What is not tuned (metric, forecaster, start and end) is taken from that node.",
                    sampler="The sampler that you will use: settings are for this one.",
                    sigmas="The steps that you will use.",
                ),
                io.Combo.Input(
                    "goal",
                    optional=True,
                    options=[SPEED, QUALITY],
                    default=SPEED,
                    tooltip="What must be met: a speed, and of all settings that reach it the closest picture is "
                    "taken; or a PSNR against the picture without SpeCa, and the fastest is taken.",
                ),
                io.Float.Input(
                    "speed",
                    optional=True,
                    default=2.5,
                    min=1.0,
                    max=20.0,
                    step=0.1,
                    tooltip="With the goal 'speed at least': how many times faster than without SpeCa, by the clock.",
                ),
                io.Float.Input(
                    "psnr",
                    optional=True,
                    default=40.0,
                    min=10.0,
                    max=80.0,
                    step=0.5,
                    tooltip="With the goal 'PSNR at least': dB against the picture without SpeCa. Above 40 a "
                    "difference is hard to see.",
                ),
                io.String.Input(
                    "save_as",
                    default="",
                    optional=True,
                    placeholder="a name, to save the settings",
                    tooltip="Saves what was found under this name; the SpeCa node then offers it in saved_settings "
                    "(press R, or reload the page, to refresh its list). Empty: nothing is saved.",
                ),
                vae_for_psnr(),
                advanced(
                    io.Float.Input(
                        "memory_limit_gb",
                        default=16.0,
                        min=0.0001,
                        max=2048.0,
                        step=1.0,
                        tooltip="The most system memory that the recorded run may take; in any case no more than four "
                        "fifths of what is free. It is given back when the node ends.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The guider's model with the settings that were found, for any sampler."),
                io.Float.Output(display_name="threshold", tooltip="As found, for a SpeCa node."),
                io.Int.Output(display_name="order", tooltip="As found."),
                io.Int.Output(display_name="warmup_steps", tooltip="As found."),
                io.Image.Output(
                    display_name="trade_off",
                    tooltip="Speed and PSNR of all that was tried: small dots as foreseen, rings as measured, the "
                    "chosen one filled.",
                ),
                io.String.Output(display_name="report", tooltip="All candidates, foreseen and measured, as JSON."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        noise,
        guider,
        sampler,
        sigmas,
        latent_image,
        goal=SPEED,
        speed=2.5,
        psnr=40.0,
        save_as="",
        vae=None,
        memory_limit_gb=16.0,
    ) -> io.NodeOutput:
        name = saved_settings.checked(save_as) if save_as.strip() else None  # before anything is run
        asked = Goal("speed", speed) if goal == SPEED else Goal("psnr", psnr)
        quality = functools.partial(psnr_of_latents, vae)
        tuning = Tuning(Asked.of(noise, guider, sampler, sigmas, latent_image), quality)
        tuned = tuning.run(asked, memory_limit_gb * GIGABYTE)
        chosen = tuned.search.chosen()
        told = to_json(tuned.search, tuned.identity, tuned.config.to_json())
        log.info("SpeCa Tune: %s", told["summary"])
        if name is not None:
            found = {key: told[key] for key in ("goal", "summary")}
            log.info("SpeCa Tune: saved as %s", saved_settings.save(name, tuned.config, tuned.identity, found))
        image = _plot(tuned.search).picture()
        model = attach(guider.model_patcher, tuned.config, live.listener, live.origin_of(cls))
        shown = {
            "text": [told["summary"]],
            "speca_tune": [json.dumps(told)],
            **ui.PreviewImage(image, cls=cls).as_dict(),
        }
        settings = chosen.settings
        return io.NodeOutput(
            model,
            settings.threshold,
            settings.order,
            settings.warmup_steps,
            image,
            json.dumps(told, indent=1),
            ui=shown,
        )


def _plot(search: Search) -> Plot:
    chosen = search.chosen()
    predicted = search.predicted
    points = [(each.speedup, each.psnr) for each in predicted.values()]
    measured = [(check.measured.speedup, check.measured.psnr) for check in search.checks]
    plot = Plot(verdict(search.goal, chosen), points + measured)
    plot.least(search.goal.least, across=search.goal.kind == "psnr")
    for i, order in enumerate(sorted({settings.order for settings in predicted})):
        of = [(f.speedup, f.psnr) for settings, f in predicted.items() if settings.order == order]
        plot.curve(of, i, f"order {order}, foreseen")
    for check in sorted(search.checks, key=lambda check: check.settings != chosen.settings):
        foreseen = check.predicted.speedup, check.predicted.psnr
        got = check.measured.speedup, check.measured.psnr
        plot.run(foreseen, got, f"{check.settings}", check.settings == chosen.settings)
    return plot


NODES = [SpeCaTune]
