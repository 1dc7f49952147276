"""One part of SpeCa altered at a time: PSNR at equal computed speedup, over thresholds.

No command of its own: `likely.py`, `first_calls.py` and `bound_to_fail.py` say what to alter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment

SPEEDS = (2.0, 2.5, 3.0, 4.0, 5.0)
THRESHOLDS = (0.005, 0.008, 0.012, 0.018, 0.025, 0.035, 0.05, 0.07, 0.10, 0.14, 0.20, 0.28, 0.40, 0.60, 0.80)


@dataclass(frozen=True)
class Alteration:
    """`settings` differ from the defaults; the runs take place within `around()`."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


def curve(subject: Any, case: Any, batch: Any, reference: Any, alteration: Alteration) -> list[Any]:
    """A `Point` per threshold."""
    from methods import SpeCa
    from quality import Point, joint_speedup, mean, psnr

    native, pictures = reference.costs[0].native, subject.picture(reference.latents)
    points = []
    with alteration.around():
        for threshold in THRESHOLDS:
            run = SpeCa((*alteration.settings, ("threshold", threshold))).run(subject, case, batch, native)
            quality = mean(psnr(subject.picture(run.latents), pictures))
            points.append(Point(joint_speedup(run.costs, subject.depth), quality))
    return points


def main(doc: str | None, heading: str, alterations: Sequence[Alteration], stem: str, models: str) -> None:
    """The command line of a script that compares `alterations`; writes `<stem>-<steps>.md` and `.json`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=models)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()
    environment.prepare()
    from methods import Uncached
    from quality import quality_at
    from sampling import Case, batch_of
    from subjects import load

    names = options.models.split(",")
    found: dict[str, dict[str, list[Any]]] = {}
    for name in names:
        subject, case = load(name), Case(options.steps)
        batch = batch_of(subject, options.samples, 100)
        reference = Uncached().run(subject, case, batch)
        found[name] = {}
        for alteration in alterations:
            found[name][alteration.name] = curve(subject, case, batch, reference, alteration)
            print(f"{name}: {alteration.name}", flush=True)

    def cell(name: str, alteration: str) -> str:
        values = [quality_at(found[name][alteration], speed) for speed in SPEEDS]
        return " / ".join("-" if value is None else f"{value:.1f}" for value in values)

    lines = [
        f"PSNR in dB at a computed speedup of {' / '.join(f'{s:g}x' for s in SPEEDS)}; {options.steps} steps, euler, "
        f"simple schedule, {options.samples} samples from seed 100.",
        "",
        f"| {heading} | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
        *(f"| {a.name} | " + " | ".join(cell(name, a.name) for name in names) + " |" for a in alterations),
    ]
    record = {
        "versions": environment.versions(),
        "steps": options.steps,
        "samples": options.samples,
        "thresholds": THRESHOLDS,
        "points": {n: {a: [vars(p) for p in points] for a, points in by.items()} for n, by in found.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    written = options.out / f"{stem}-{options.steps}"
    written.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    written.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
