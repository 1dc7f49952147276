"""A trained model's file and its card: what it is, what it draws, how hard it is for a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sample
import torch
from torch import Tensor, nn

from measure.quality import mean, psnr

from . import build
from .data.source import Source
from .specs import Spec
from .training.export import loss_curve, picture_grid, save_fp16

DIFFICULTY_STEPS = (50, 17)
"""A run of 50 steps, and one of a third of them: what a cache must beat at 3x."""
SAMPLES = 16
GUIDANCE = 2.5


def export(spec: Spec, data: Source, average: nn.ModuleDict, facts: dict[str, Any]) -> None:
    """Write the model, then load it as anybody would, sample it and write its card and its sheet of samples."""
    build.MODELS.mkdir(exist_ok=True)
    path = build.path_of(spec.name)
    metadata = {
        "classes": json.dumps(list(data.classes)),
        "training": json.dumps({k: v for k, v in facts.items() if k != "losses"}),
        "license": data.origin.licence,
    }
    tensors = average.state_dict()
    size = save_fp16(path, tensors, metadata)
    model, condition = build.load(spec.name)
    labels = [index % max(len(data.classes), 1) for index in range(SAMPLES * 2)]
    with torch.no_grad():
        plain = {n: _sample(spec, model, condition, labels[:SAMPLES], n, 1.0) for n in DIFFICULTY_STEPS}
        guidance = 1.0 if spec.teacher else GUIDANCE
        shown = plain[50] if not data.classes else _sample(spec, model, condition, labels, 50, guidance)
    uncached, fewer = (build.to_pictures(spec, plain[n]).add(1).div(2).clamp(0, 1) for n in DIFFICULTY_STEPS)
    difficulty = sorted(psnr(fewer, uncached))
    _sheet(spec, build.to_pictures(spec, shown)).save(path.with_suffix(".png"), optimize=True)
    _write(spec, data, facts, path, size, sum(t.numel() for t in tensors.values()), difficulty)
    print(f"{spec.name}: {size / 1e6:.2f} MB; 17 of 50 steps: {mean(difficulty):.1f} dB, worst {difficulty[0]:.1f}")


def _sample(spec: Spec, model: Any, condition: build.Condition, labels: list[int], steps: int, cfg: float) -> Tensor:
    labels = [condition.null if not condition.null else label for label in labels]
    positive, negative = build.conditionings(condition, labels)
    noise = torch.stack(
        [torch.randn(spec.latent_shape, generator=torch.Generator().manual_seed(1000 + i)) for i in range(len(labels))]
    )
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        "euler",
        "simple",
        positive,
        negative,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=1,
    )


def _sheet(spec: Spec, pictures: Tensor) -> Any:
    """Pictures eight to a row; the frames of a clip side by side, four clips to a row."""
    if spec.frames:
        return picture_grid(pictures.movedim(2, 1).flatten(0, 1), columns=4 * spec.frames, zoom=96 // spec.size)
    return picture_grid(pictures, zoom=96 // spec.size)


def _write(
    spec: Spec, data: Source, facts: dict, path: Path, size: int, parameters: int, difficulty: list[float]
) -> None:
    hardware = "one CPU core" if facts["device"] == "cpu" else facts["device"]
    kind = f"clips of {spec.frames} frames of" if spec.frames else "pictures of"
    folded = f", {spec.fold}x{spec.fold} pixels folded into channels" if spec.fold > 1 else ""
    fewest, most = min(data.counts, default=0), max(data.counts, default=0)
    classes = f"{len(data.classes)} broad ones, of {fewest} to {most} pictures"
    shown = f"{2 * SAMPLES} samples, 50 euler steps, {'no guidance' if spec.teacher else f'cfg {GUIDANCE:g}'}"
    if not data.classes:
        classes, shown = "none", f"{SAMPLES} samples, 50 euler steps, no guidance"
    taught = (
        f", distilled from [{spec.teacher}]({spec.teacher}.md) with guidance {spec.guidance:g}" if spec.teacher else ""
    )
    rows = {
        "Difficulty": f"**{mean(difficulty):.1f} dB** (worst of {SAMPLES}: {difficulty[0]:.1f}): PSNR of 17 steps "
        "against 50, euler, simple",
        "File": f"`{path.name}`, {size / 1e6:.2f} MB, fp16, EMA weights",
        "Parameters": f"{parameters / 1e6:.2f} M",
        "Latents": f"{'x'.join(map(str, spec.latent_shape))}, without a VAE{folded}",
        "Sampling": ", ".join(f"{k} {v:g}" for k, v in spec.sampling.items()) or "as the class has it",
        "Data": f"{data.origin.content}, from {data.origin.packages}",
        "Classes": classes,
        "Licence": f"of the data: {data.origin.licence}; the weights are derived from it and under it too",
        "Trained by": f"`python dev.py train {spec.name}`",
        "Run": f"{facts['steps']} steps of {facts['batch']}, AdamW, peak learning rate {facts['lr']:g}, seed "
        f"{facts['seed']}, {facts['minutes']} minutes on {hardware}{taught}",
        "Final loss": f"{facts['loss']} (mean of the last 200 steps)",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    path.with_suffix(".md").write_text(
        f"""# {spec.name}

{spec.family}'s own network, made small (`{spec.model_class}`): {kind} {spec.size}x{spec.size} pixels. For the
benchmark; of no use for anything else.

![samples]({spec.name}.png)

{shown}.

| | |
| --- | --- |
{table}

{loss_curve(facts["losses"])}
"""
    )
