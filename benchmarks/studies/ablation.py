"""What is each part of the rule worth? The rule without it, at the same speed, on every model.

    python dev.py study ablation [--models flux-fluent,dit-clipart] [--steps 28] [--parts corrector,growth]
    python dev.py study ablation --sampler euler_ancestral

Each part is switched off alone (`_parts`), the threshold goes through `THRESHOLDS`, and PSNR is read off at `SPEEDS`
computed for real depth, between the thresholds on either side. The table shows by how much the mean and the worst
sample are lower without the part: a part that is not worth half a decibel on the models' average should go, unless it
is with others of its kind. Of a sampler that adds noise, the parts are those for fresh noise (`NOISY`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from measure import environment
from measure.curve import Point, at

THRESHOLDS = (0.02, 0.05, 0.1, 0.18, 0.3, 0.5, 0.9, 1.6, 3.2)
SPEEDS = (2.0, 2.5, 3.0, 4.0, 5.0)
FIRST_SEED = 300
NOISY = {"euler_ancestral": (1.5, 2.0, 2.5, 3.0)}
"""Samplers that add noise -> the speeds that are read off there."""
FOR_NOISE = ("spectrum", "gain", "repeated")
RENOISED_GAIN = "speca.draft.RENOISED_NOISE_GAIN_LIMIT"


def _parts() -> dict[str, tuple[str, list[tuple[str, Any]]]]:
    """Name -> (what it is without it, what is put in the place of what)."""
    import torch

    from speca.spectrum import Spectrum
    from speca.verify import likely_error

    growth = ("speca.verify.CARRIED_GROWTH", 1.0)
    likely = ("speca.verify.likely_error", lambda difference, reach: difference)
    expected = ("speca.policy.expected_error", lambda *args: 0.0)
    return {
        "corrector": (
            "nothing put right by computed calls (`corrector`)",
            [("speca.corrector.Corrector.strayed", lambda *args: None)],
        ),
        "picture": (
            "the picture kept while the latent is put right (`corrector.Astray.picture`)",
            [("speca.spectrum.Spectrum.shown", lambda spectrum, level, x: torch.zeros_like(x))],
        ),
        "ends": ("the last two steps as all others (STAYS_ASTRAY 1)", [("speca.schedule.STAYS_ASTRAY", 1.0)]),
        "growth": ("errors add up without growing (CARRIED_GROWTH 1)", [growth]),
        "likely": ("the difference alone is judged (`verify.likely_error`)", [likely]),
        "lone": (
            "guesses judged as lines are (`likely_error_of_guesses`)",
            [("speca.verify.likely_error_of_guesses", likely_error)],
        ),
        "expected": ("every check tried (`policy.expected_error`)", [expected]),
        "judged": ("these three together: growth, likely error, checks bound to fail", [growth, likely, expected]),
        "added": (
            "one computed call repeated whole, not in what its blocks added (`Anchor.added`)",
            [("speca.stream.Stream.needs_embedded", lambda stream, call: stream.relative)],
        ),
        "undecided": (
            "what an early error costs is not learnt (`undecided`; DECIDED_AT stays)",
            [("speca.undecided.Undecided.decided_at", property(lambda self: None))],
        ),
        "half": (
            "what is learnt of it counts whole, not for half beside what is usual",
            [("speca.undecided.Undecided.decided_at", property(lambda self: self.variance and self.variance**0.5))],
        ),
        "spectrum": (
            "pictures taken as white (`spectrum.Spectrum.of`)",
            [("speca.spectrum.Spectrum.of", Spectrum.white)],
        ),
        "gain": ("noise gain as without fresh noise (RENOISED_NOISE_GAIN_LIMIT)", [(RENOISED_GAIN, math.inf)]),
        "repeated": ("what the latent does not tell is repeated (RENOISED_NOISE_GAIN_LIMIT 1)", [(RENOISED_GAIN, 1.0)]),
    }


def parts_for(sampler: str) -> list[str]:
    """The parts that a run with this sampler has."""
    return [part for part in _parts() if (part in FOR_NOISE) == (sampler in NOISY)]


@contextmanager
def without(part: str) -> Iterator[None]:
    """The rule without one of its parts; with all of them for ""."""
    replaced = [patch(name, new) for name, new in _parts()[part][1]] if part else []
    for each in replaced:
        each.start()
    try:
        yield
    finally:
        for each in replaced:
            each.stop()


def curve(subject: Any, case: Any, batch: Any, reference: Any) -> list[tuple[float, float, float]]:
    """(speed computed for real depth, mean PSNR, that of the worst sample) at each of `THRESHOLDS`."""
    from methods.base import point_of
    from methods.speca import SpeCa

    points = []
    for threshold in THRESHOLDS:
        point = point_of(SpeCa((("threshold", threshold),)).run(subject, case, batch, case.steps), subject, reference)
        points.append((point.speed, point.mean, point.worst))
    return points


def differences(
    whole: Sequence[tuple[float, float, float]],
    less: Sequence[tuple[float, float, float]],
    speeds: Sequence[float] = SPEEDS,
) -> list[tuple[float, float] | None]:
    """By how many dB the mean and the worst sample are higher without the part, at each of `speeds`."""
    a, b = ([Point(speed, mean, worst=worst) for speed, mean, worst in sorted(points)] for points in (whole, less))
    both = [(at(a, speed), at(b, speed)) for speed in speeds]
    return [None if a is None or b is None else (b.mean - a.mean, b.worst - a.worst) for a, b in both]


def table(results: dict[str, dict[str, list[tuple[float, float] | None]]], describe: Callable[[str], str]) -> str:
    """part -> model -> `differences`, as Markdown: the mean over speeds of each model, and over models."""
    models = list(dict.fromkeys(model for of_part in results.values() for model in of_part))
    lines = [
        "| without | " + " | ".join(models) + " | all, mean | all, worst samples |",
        "| --- |" + " --- |" * (len(models) + 2),
    ]
    for part, of_part in results.items():
        known = {model: [d for d in of_part.get(model, []) if d is not None] for model in models}
        means = {model: statistics.fmean(d[0] for d in found) for model, found in known.items() if found}
        worst = {model: statistics.fmean(d[1] for d in found) for model, found in known.items() if found}
        cells = [f"{means[model]:+.1f}" if model in means else "-" for model in models]
        of_all = [f"{statistics.fmean(of.values()):+.2f}" if of else "-" for of in (means, worst)]
        lines.append(f"| {describe(part)} | " + " | ".join([*cells, *of_all]) + " |")
    return "\n".join(lines)


def report(record: dict[str, Any]) -> str:
    """Of all curves that are kept: model -> part -> curve, "" being the whole rule."""
    sampler = record["sampler"]
    speeds = NOISY.get(sampler, SPEEDS)
    results = {
        part: {
            name: differences(of_model[""], of_model[part], speeds)
            for name, of_model in record["curves"].items()
            if part in of_model
        }
        for part in _parts()
        if any(part in of_model for of_model in record["curves"].values())
    }
    lines = [
        "What each part of the rule is worth: by how many dB the rule without it is better (+) or worse (-) than with",
        "it, at equal speed computed for real depth. Means over",
        f"{', '.join(f'{s:g}x' for s in speeds)} where both reach it; {record['steps']} steps, {sampler}, simple,",
        f"{record['samples']} samples. Half a decibel of one model is no difference.",
        "",
        table(results, lambda part: _parts()[part][0]),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="default: all that are there")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--parts", help="default: all")
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()

    environment.prepare()
    from measure.sampling import Case, batch_of, sample
    from measure.subjects import load, trained

    parts = options.parts.split(",") if options.parts else parts_for(options.sampler)
    name_of_files = "ablation" if options.sampler == "euler" else f"ablation-{options.sampler}"
    path = options.out / f"{name_of_files}.json"
    record = json.loads(path.read_text()) if path.exists() else {"curves": {}, "weights": {}}
    case = Case(options.steps, options.sampler)
    of_run = {"steps": options.steps, "samples": options.samples, "sampler": options.sampler}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(",") if options.models else trained():
        subject = load(name)
        record["weights"][name] = subject.weights
        batch = batch_of(subject, options.samples, FIRST_SEED)
        reference = subject.picture(sample(subject.patcher, subject, case, batch).latents)
        for part in ["", *parts]:
            with without(part):
                record["curves"].setdefault(name, {})[part] = curve(subject, case, batch, reference)
            print(f"{name}: {part or 'all parts'}", flush=True)
        record |= {"versions": environment.versions(), **of_run}
        path.write_text(json.dumps(record) + "\n")
    text = report(record)
    path.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
