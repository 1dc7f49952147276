"""How wrong is likely: what SpeCa compares with the threshold, piece by piece, and what the true error would give.

    python benchmarks/likely.py [--models flux,dit] [--steps 28] [--samples 12]

Each variant judges the same forecasts by something else; all other rules stay. *True error* computes every speculated
call in full beside it, at no counted cost: no run can have that, so it bounds what a better check could gain. Printed
is the PSNR at equal computed speedup, over thresholds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment

SPEEDS = (2.0, 2.5, 3.0, 4.0)
THRESHOLDS = (0.005, 0.008, 0.012, 0.018, 0.025, 0.035, 0.05, 0.07, 0.10, 0.14, 0.20, 0.28, 0.40)


@dataclass(frozen=True)
class Variant:
    """growth: of the sum of errors, per forecast. reach: whether it counts. true: judged by the truth."""

    name: str
    growth: float
    reach: bool = False
    true: bool = False


VARIANTS = (
    Variant("difference alone", 1.0),
    Variant("difference, sum grows by 1.2", 1.2),
    Variant("difference, sum grows by 1.4", 1.4),
    Variant("difference and reach", 1.0, reach=True),
    Variant("difference and reach, 1.1", 1.1, reach=True),
    Variant("difference and reach, 1.2 (as built)", 1.2, reach=True),
    Variant("difference and reach, 1.4", 1.4, reach=True),
    Variant("true error", 1.0, true=True),
)


@contextmanager
def judging_by(variant: Variant) -> Iterator[None]:
    """SpeCa's sessions judge as the variant says."""
    from speca.session import Session

    with ExitStack() as stack:
        stack.enter_context(patch("speca.session.CARRIED_GROWTH", variant.growth))
        if variant.true:
            stack.enter_context(patch.object(Session, "_speculate", _knowing_the_truth(Session._speculate)))
        elif not variant.reach:
            stack.enter_context(patch("speca.session.likely_error", lambda difference, reach: difference))
        yield


def _knowing_the_truth(speculate: Callable[..., Any]) -> Callable[..., Any]:
    """`Session._speculate` that finds the error of the answer it would give against the exact output."""
    from speca.session import Session, _Draft

    def knowing(self: Any, call: Any, network: Any, samples: Sequence[int]) -> Any:
        drafts: list[Any] = []

        def error(direct: Any, verified: Any) -> Any:
            if drafts:  # the second question is how far the forecast reaches
                return drafts[0]
            rows = call.rows_of(samples)
            exact = network.full(None if len(rows) == len(call.streams) else rows, False, call.renoised).output
            answer = self._answer(call, _Draft(rows, verified, direct), rows).output
            drafts.append(Session._error(self, answer, exact))
            return drafts[0]

        with patch.object(self, "_error", error):
            return speculate(self, call, network, samples)

    return knowing


def curve(subject: Any, case: Any, batch: Any, reference: Any, variant: Variant) -> list[Any]:
    """A `Point` per threshold."""
    from methods import SpeCa
    from quality import Point, joint_speedup, mean, psnr

    native, pictures = reference.costs[0].native, subject.picture(reference.latents)
    points = []
    with judging_by(variant):
        for threshold in THRESHOLDS:
            run = SpeCa((("threshold", threshold),)).run(subject, case, batch, native)
            quality = mean(psnr(subject.picture(run.latents), pictures))
            points.append(Point(joint_speedup(run.costs, subject.depth), quality))
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="flux,dit")
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
        for variant in VARIANTS:
            found[name][variant.name] = curve(subject, case, batch, reference, variant)
            print(f"{name}: {variant.name}", flush=True)

    def cell(name: str, variant: str) -> str:
        values = [quality_at(found[name][variant], speed) for speed in SPEEDS]
        return " / ".join("-" if value is None else f"{value:.1f}" for value in values)

    lines = [
        f"PSNR in dB at a computed speedup of {' / '.join(f'{s:g}x' for s in SPEEDS)}; {options.steps} steps, euler, "
        f"simple schedule, {options.samples} samples from seed 100.",
        "",
        "| judged by | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
        *(f"| {v.name} | " + " | ".join(cell(name, v.name) for name in names) + " |" for v in VARIANTS),
    ]
    record = {
        "versions": environment.versions(),
        "steps": options.steps,
        "samples": options.samples,
        "thresholds": THRESHOLDS,
        "points": {n: {v: [vars(p) for p in points] for v, points in by.items()} for n, by in found.items()},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"likely-{options.steps}"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
