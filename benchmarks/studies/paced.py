"""Is a speed that was asked for as good as the fixed threshold of that speed, which nobody knows beforehand?

    python dev.py study paced [--models flux-fluent,dit-units] [--speeds 2,3,4] [--steps 28] [--samples 6]

Speed mode, one sample a run, time counted in blocks of the real model's depth (`studies.speed`); against all samples at
one threshold of `THRESHOLDS`, read off between the two on either side of the speed that was reached. One threshold
gives samples that are harder more of the time; a speed gives each the same. So each is also compared with its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import environment
from measure.curve import at

if TYPE_CHECKING:
    from methods.base import Run

THRESHOLDS = (0.02, 0.04, 0.06, 0.09, 0.13, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.5, 2.2, 3.2)


@dataclass(frozen=True)
class Paced:
    """All samples of a model at a speed asked for. mean, worst: PSNR in dB; at_threshold: at a fixed threshold. alone:
    of each sample, dB above the fixed threshold at which that sample is as fast; where one is.
    """

    model: str
    asked: float
    got: float
    mean: float
    worst: float
    mean_at_threshold: float
    worst_at_threshold: float
    alone: tuple[float, ...]


def fixed(subject: Any, case: Any, batch: Any) -> list[Run]:
    """A run for each threshold."""
    from methods.speca import SpeCa

    return [SpeCa((("threshold", threshold),)).run(subject, case, batch, case.steps) for threshold in THRESHOLDS]


def paced(subject: Any, case: Any, batch: Any, speed: float) -> Run:
    """Speed mode, asked for `speed`."""
    from methods.base import run_setting
    from methods.speca import SpeCa

    from .speed import counted_in_blocks

    setting = SpeCa((("mode", "speed"), ("target_speedup", speed)), one_by_one=True)
    with counted_in_blocks(subject.depth):
        return run_setting(setting, subject, case, batch, case.steps)


def compare(subject: Any, asked: float, run: Run, thresholds: Sequence[Run], reference: Any) -> Paced | None:
    """None where no fixed threshold is as fast. reference: (B, ...) pictures of the uncached run."""
    from methods.base import point_of, points_of

    got = point_of(run, subject, reference)
    beside = at(sorted(point_of(each, subject, reference) for each in thresholds), got.speed)
    if beside is None:
        return None
    curves = zip(*(points_of(each, subject, reference) for each in thresholds), strict=True)
    own = zip(points_of(run, subject, reference), curves, strict=True)
    pairs = [(point, at(sorted(curve), point.speed)) for point, curve in own]
    alone = tuple(point.mean - there.mean for point, there in pairs if there is not None)
    return Paced(subject.name, asked, got.speed, got.mean, got.worst, beside.mean, beside.worst, alone)


def table(found: Sequence[Paced]) -> str:
    """A line for each model, as Markdown: the speed reached, mean and worst sample, and their differences."""
    speeds = sorted({each.asked for each in found})
    lines = [
        "| model | " + " | ".join(f"{speed:g}x asked: got, dB (difference)" for speed in speeds) + " |",
        "| --- |" + " --- |" * len(speeds),
    ]
    for model in dict.fromkeys(each.model for each in found):
        cells = []
        for speed in speeds:
            of = next((each for each in found if (each.model, each.asked) == (model, speed)), None)
            cells.append(
                "-"
                if of is None
                else f"{of.got:.2f}x, {of.mean:.1f} / {of.worst:.1f} "
                f"({of.mean - of.mean_at_threshold:+.1f} / {of.worst - of.worst_at_threshold:+.1f})"
            )
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    more = [(each.mean - each.mean_at_threshold, each.worst - each.worst_at_threshold) for each in found]
    mean, worst = (statistics.fmean(column) for column in zip(*more, strict=True))
    alone = [difference for each in found for difference in each.alone]
    lines += [
        *(
            "",
            f"All: {mean:+.1f} dB, worst samples {worst:+.1f} dB. Each sample against the fixed threshold at which it",
        ),
        f"is as fast itself: {statistics.fmean(alone):+.1f} dB, in the middle {statistics.median(alone):+.1f}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="default: all that are there")
    parser.add_argument("--speeds", default="2,3,4")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()

    environment.prepare()
    from measure.sampling import Case, batch_of, sample
    from measure.subjects import load, trained

    found: list[Paced] = []
    weights: dict[str, str] = {}
    case = Case(options.steps)
    for name in options.models.split(",") if options.models else trained():
        subject = load(name)
        weights[name] = subject.weights
        batch = batch_of(subject, options.samples, options.first_seed)
        reference = subject.picture(sample(subject.patcher, subject, case, batch).latents)
        thresholds = fixed(subject, case, batch)
        for speed in map(float, options.speeds.split(",")):
            compared = compare(subject, speed, paced(subject, case, batch, speed), thresholds, reference)
            if compared is not None:
                found.append(compared)
        print(f"{name}: done", flush=True)
    text = (
        f"Speed mode against the fixed threshold of the same speed, {options.steps} steps, euler, simple,\n"
        f"{options.samples} samples: PSNR of the mean and of the worst sample, and by how much that is more.\n\n"
        + table(found)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"versions": environment.versions(), "weights": weights, "rows": [asdict(each) for each in found]}
    (options.out / "paced.json").write_text(json.dumps(record) + "\n")
    (options.out / "paced.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
