"""Write a trained model: fp16 safetensors with its configuration, a sheet of samples, a card."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.training.loop import CACHE, MODELS

COLUMNS = 8
DATA = (
    "48 Noto emoji from the npm package `emoji-datasource-google` 16.0.0, shifted, turned and scaled on soft "
    "backgrounds, 32x32 RGB"
)
LICENCE = (
    "the artwork is Google's Noto Emoji, Apache License 2.0; the weights, a work derived from it, are released under "
    "the same licence"
)


def picture_grid(pictures: Tensor, columns: int = COLUMNS, zoom: int = 3):
    """(B, 3, H, W) in [-1, 1] -> one PIL picture, each pixel `zoom` wide."""
    from PIL import Image

    b, _, h, w = pictures.shape
    rows = -(-b // columns)
    sheet = torch.ones(rows * columns, 3, h, w)
    sheet[:b] = (pictures.float().clamp(-1, 1) + 1) / 2
    sheet = sheet.view(rows, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    picture = Image.fromarray((sheet * 255).round().byte().numpy())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.NEAREST)


def write_references() -> Path:
    """The artwork of all classes as one RGBA sheet beside the models, for judging samples without the network."""
    from PIL import Image

    from zoo.training.emoji import SPRITE, fetch_sprites

    path = MODELS / "emoji.png"
    sprites = fetch_sprites(CACHE)
    alpha = sprites[:, 3:]
    rgba = torch.cat((torch.where(alpha > 0, sprites[:, :3] / alpha.clamp(min=1e-6), 0), alpha), 1)
    rows = -(-len(rgba) // COLUMNS)
    sheet = torch.zeros(rows * COLUMNS, 4, SPRITE, SPRITE)
    sheet[: len(rgba)] = rgba
    sheet = sheet.view(rows, COLUMNS, 4, SPRITE, SPRITE).permute(0, 3, 1, 4, 2).reshape(rows * SPRITE, -1, 4)
    Image.fromarray((sheet * 255).round().byte().numpy(), "RGBA").save(path, optimize=True)
    return path


def save_fp16(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> int:
    """Write the tensors in half precision; returns the size in bytes."""
    half = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(half, temporary, metadata=metadata)
    temporary.replace(path)
    return path.stat().st_size


def loss_curve(losses: list[float], points: int = 12) -> str:
    """A table of the mean loss over equal parts of the run."""
    if not losses:
        return ""
    part = max(1, len(losses) // points)
    chunks = [losses[i : i + part] for i in range(0, len(losses) - part + 1, part)]
    head = "| up to step | " + " | ".join(str((i + 1) * part) for i in range(len(chunks))) + " |"
    line = "| --- " * (len(chunks) + 1) + "|"
    row = "| mean loss | " + " | ".join(f"{sum(c) / len(c):.4f}" for c in chunks) + " |"
    return "\n".join((head, line, row))


def write_card(
    path: Path, title: str, what: str, command: str, facts: dict, size: int, parameters: int, quality: str
) -> None:
    """The model's card, everything in it taken from the run itself."""
    hardware = "2 CPU cores" if facts["device"] == "cpu" else facts["device"]
    short = ""
    if facts["steps"] < facts["planned_steps"]:
        short = f" An early checkpoint of a run planned for {facts['planned_steps']} steps."
    run = (
        f"{facts['steps']} steps of {facts['batch']}, AdamW, peak learning rate {facts['lr']:g}, seed {facts['seed']}, "
        f"{facts['minutes']} minutes on {hardware}.{short} {facts['note']}"
    ).strip()
    path.write_text(
        f"""# {title}

{what}

![samples]({path.stem}.png)

{quality}

| | |
| --- | --- |
| File | `{path.stem}.safetensors`, {size / 1e6:.2f} MB, fp16, EMA weights |
| Parameters | {parameters / 1e6:.2f} M |
| Data | {DATA} |
| Licence | {LICENCE} |
| Trained by | `{command}` |
| Run | {run} |
| Final loss | {facts["loss"]} (mean of the last 200 steps) |

{loss_curve(facts["losses"])}
"""
    )


def quality_table(lines: list[str], count: int, steps: int = 28) -> str:
    """The card's account of the samples: `lines` are the table's rows."""
    said = (
        f"Samples of {count} classes, one seed, {steps} euler steps, by ComfyUI's sampler (picture: cfg 2.5). "
        "*Right*: the nearest of the 48 reference emoji is the one that was asked for. "
        "*Distance*: root mean squared difference to it, colours from 0 to 1."
    )
    return "\n".join([said, "", "| cfg | right | distance |", "| --- | --- | --- |", *lines])


def quality_row(cfg: float, judged: Tensor, asked: Tensor) -> str:
    """A row of the table: `judged` (B, n) distances, `asked` (B,) the class numbers asked for."""
    right = (judged.argmin(1) == asked).float().mean().item()
    own = judged.gather(1, asked[:, None]).mean().item()
    return f"| {cfg:g} | {100 * right:.0f} % | {own:.3f} |"


def command_line() -> str:
    """The command of this run, without what only concerns this machine."""
    skip = {"--export", "--compile", "--fresh"}
    arguments = [a for a in sys.argv[1:] if a not in skip]
    if "--note" in arguments:
        at = arguments.index("--note")
        del arguments[at : at + 2]
    return " ".join(["python dev.py train", Path(sys.argv[0]).stem, *arguments])


def export_model(config, average, facts: dict, title: str, what: str, stem: str) -> None:
    """Write a flow-matching model (FLUX or HunyuanVideo), sample it through ComfyUI, say how good the samples are."""
    from zoo.emoji_pack import judge, models

    MODELS.mkdir(exist_ok=True)
    write_references()
    path = MODELS / f"{stem}.safetensors"
    metadata = {
        models.METADATA_KEY: config.to_json(),
        "training": json.dumps({k: v for k, v in facts.items() if k != "losses"}),
        "license": "Apache-2.0",
    }
    size = save_fp16(path, average.state_dict(), metadata)
    parameters = sum(p.numel() for p in average.parameters())
    models._condition_table.cache_clear()
    model = models.load(path)
    n = len(config.classes)
    if config.motions:  # clips cost far more than pictures: every fourth class, every motion at least once
        asked = torch.arange(0, n, 4)
        motions = (torch.arange(len(asked)) % len(config.motions)).tolist()
        scales, strengths, steps = (0.64, 0.72), (2.5,), 20
    else:
        asked, motions, scales, strengths, steps = torch.arange(n), None, (0.82, 0.9), (1.0, 2.5, 4.0), 28
    lines = []
    with torch.no_grad():
        for cfg in strengths:
            samples = models.sample(model, asked.tolist(), motions, seed=1, steps=steps, cfg=cfg)
            pictures = judge.middle_frames(samples) if config.motions else samples
            lines.append(quality_row(cfg, judge.distances(pictures, n, scales), asked))
            if cfg != 2.5:
                continue
            if config.motions:  # the frames of a clip side by side, four clips to a row
                samples = samples.movedim(2, 1).flatten(0, 1)
                picture_grid(samples, columns=4 * config.frames, zoom=2).save(MODELS / f"{stem}.png", optimize=True)
            else:
                picture_grid(samples).save(MODELS / f"{stem}.png", optimize=True)
    quality = quality_table(lines, len(asked), steps)
    write_card(MODELS / f"{stem}.md", title, what, command_line(), facts, size, parameters, quality)
    print(f"{stem}: {size / 1e6:.2f} MB; cfg | right | distance", *lines, sep="\n", flush=True)
