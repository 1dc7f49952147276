"""The node `SpeCaSweep`: thresholds by seeds, as a table and a plot in the output folder."""

from __future__ import annotations

import copy
import csv
import io as text
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from PIL import Image

from ..speca.comfyui.asked import Asked, tensors_of
from ..speca.comfyui.attach import attachment_on, with_settings
from ..speca.comfyui.compare import Comparison
from ..speca.comparison import relative_error
from .inputs import sampling, schema, vae_for_psnr
from .quality import psnr_of_latents
from .tradeoff import Plot

COLUMNS = (
    *("seed", "threshold", "speedup", "seconds", "seconds_uncached", "psnr_db", "latent_error"),
    *("calls", "full", "accepted", "trusted", "rejected"),
)
MAX_SEED = 2**64


class SpeCaSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="SpeCaSweep",
            display_name="SpeCa Sweep",
            category="SpeCa",
            search_aliases=["threshold sweep", "grid", "benchmark cache", "plot speed quality", "csv"],
            description="Samples with each of several thresholds and seeds, each seed once without SpeCa, and writes a "
            "table (CSV) and a plot of speed against PSNR into the output folder.",
            inputs=[
                *sampling(
                    "all runs",
                    "All but the threshold is taken from that node.",
                    noise="The noise of the first seed; others count up from its seed.",
                ),
                io.String.Input(
                    "thresholds",
                    optional=True,
                    default="0.02, 0.05, 0.08, 0.15, 0.3",
                    tooltip="What to try, separated by commas.",
                ),
                io.Int.Input(
                    "seeds",
                    optional=True,
                    default=3,
                    min=1,
                    max=1000,
                    tooltip="How many seeds each threshold is tried with. Each costs one run without SpeCa, too.",
                ),
                io.String.Input(
                    "filename_prefix",
                    optional=True,
                    default="speca/sweep",
                    tooltip="Folder and beginning of the names of the two files in the output folder.",
                ),
                vae_for_psnr(),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="PSNR over speedup, one curve for each seed."),
                io.String.Output(display_name="csv", tooltip="The table, one line for each run."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
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
        thresholds="0.02, 0.05, 0.08, 0.15, 0.3",
        seeds=3,
        filename_prefix="speca/sweep",
        vae=None,
    ) -> io.NodeOutput:
        values = numbers(thresholds)
        attachment_on(guider, "SpeCa Sweep")  # before anything is run
        asked = [Asked.of(each, guider, sampler, sigmas, latent_image) for each in _noises(noise, seeds)]
        rows = list(_rows(values, asked, vae))
        table = _table(rows)
        image = _plot(rows).picture()
        width, height = image.shape[2], image.shape[1]
        folder, stem, counter, *_ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        path = Path(folder, f"{stem}_{counter:05}_")
        path.with_suffix(".csv").write_text(table, encoding="utf-8")
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(path.with_suffix(".png"))
        said = f"{len(rows)} runs: {path.with_suffix('.csv')}"
        shown = {"text": [said], **ui.PreviewImage(image, cls=cls).as_dict()}
        return io.NodeOutput(image, table, ui=shown)


def numbers(listed: str) -> list[float]:
    """Thresholds in their order, each once. Raises ValueError with what is none."""
    values = []
    for each in filter(None, (part.strip() for part in listed.replace(";", ",").split(","))):
        try:
            value = float(each)
        except ValueError:
            raise ValueError(f"SpeCa Sweep: {each!r} in thresholds is no number; type such as 0.05, 0.1, 0.2") from None
        if not 0 < value < math.inf:
            raise ValueError(f"SpeCa Sweep: the threshold {each} must be above 0; the run without SpeCa is made anyway")
        values.append(value)
    if not values:
        raise ValueError("SpeCa Sweep: type at least one threshold, such as 0.08")
    return list(dict.fromkeys(values))


def _noises(noise: Any, seeds: int) -> Iterator[Any]:
    """Of so many seeds, which count up from the noise's own."""
    for i in range(seeds):
        counted = copy.copy(noise)
        counted.seed = (noise.seed + i) % MAX_SEED
        yield counted


def _rows(thresholds: Sequence[float], asked: Sequence[Asked], vae: Any) -> Iterator[dict[str, Any]]:
    """One for each run. What is kept of the run without SpeCa serves all thresholds of a seed."""
    comparison = Comparison()
    bar = comfy.utils.ProgressBar(len(asked) * len(thresholds))
    for of_seed in asked:
        config = attachment_on(of_seed.guider, "SpeCa Sweep").config
        for threshold in thresholds:
            with with_settings(replace(config, mode="threshold", threshold=threshold)):
                pair = comparison.run(of_seed)
            yield _row(of_seed.noise.seed, threshold, pair, vae)
            bar.update(1)


def _row(seed: int, threshold: float, pair: Any, vae: Any) -> dict[str, Any]:
    seconds, uncached = pair.speca.seconds, pair.uncached.seconds
    totals = None if pair.record is None else pair.record.totals
    row: dict[str, Any] = {
        "seed": seed,
        "threshold": threshold,
        "speedup": round(uncached / max(seconds, 1e-9), 3),
        "seconds": round(seconds, 4),
        "seconds_uncached": round(uncached, 4),
        "psnr_db": round(psnr_of_latents(vae, pair.speca.latent, pair.uncached.latent), 3),
        "latent_error": float(f"{relative_error(tensors_of(pair.speca.latent), tensors_of(pair.uncached.latent)):.4g}"),
    }
    for name in ("calls", "full", "accepted", "trusted", "rejected"):
        row[name] = None if totals is None else getattr(totals, name)
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    told = text.StringIO()
    writer = csv.DictWriter(told, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return told.getvalue()


def _plot(rows: Sequence[dict[str, Any]]) -> Plot:
    def points(of: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
        return [(row["speedup"], row["psnr_db"]) for row in of]

    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    plot = Plot(f"{len(rows)} runs: speed and PSNR at each threshold", points(rows))
    for i, seed in enumerate(seeds):
        of_seed = [row for row in rows if row["seed"] == seed]
        plot.curve(
            points(of_seed), i, f"seed {seed}", labels=[f"{row['threshold']:g}" for row in of_seed] if i == 0 else ()
        )
    return plot


NODES = [SpeCaSweep]
