"""With other samplers, schedules and guidance: is SpeCa's picture nearer to the uncached one than that of fewer steps?

    python dev.py study samplers [--models flux-fluent,dit-clipart] [--cases heun-simple,euler-karras]

PSNR is read off at `SPEEDS`, computed for real depth, of SpeCa over `THRESHOLDS` and of the same sampler with fewer
steps. Fewer steps of an ancestral sampler draw other noise, and with it another picture; an SDE sampler draws from one
Brownian path, whatever its steps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import environment
from measure.curve import Point, at_least
from tables import markdown

THRESHOLDS = (0.03, 0.06, 0.12, 0.2, 0.35, 0.6, 1.0, 2.0)
STEP_COUNTS = (20, 16, 14, 12, 10, 9, 8)
SPEEDS = (2.0, 3.0)
FIRST_SEED = 500
STEPS = 28
MODELS = ("qwen-stamps", "flux-fluent", "dit-clipart", "cosmos-fluent")
CASES = (
    *(("heun", "simple", 1.0), ("dpmpp_2m", "simple", 1.0), ("euler_ancestral", "simple", 1.0)),
    *(("dpm_2_ancestral", "simple", 1.0), ("dpmpp_2s_ancestral", "simple", 1.0), ("dpmpp_2m_sde", "simple", 1.0)),
    *(("euler_cfg_pp", "simple", 1.5), ("dpmpp_2m_cfg_pp", "simple", 1.5)),
    *(("euler", "normal", 1.0), ("euler", "beta", 1.0), ("euler", "karras", 1.0), ("euler", "simple", 2.5)),
)


def name_of(case: tuple[str, str, float]) -> str:
    sampler, scheduler, cfg = case
    return f"{sampler}-{scheduler}" + (f"-cfg{cfg:g}" if cfg != 1 else "")


def compare(subject: Any, case: Any, batch: Any) -> dict[str, list[Point]]:
    """The curves of SpeCa and of fewer steps, slowest first."""
    from methods.base import point_of
    from methods.fewer_steps import Uncached
    from methods.speca import SpeCa

    whole = Uncached().run(subject, case, batch)
    native, reference = int(whole.costs[0].native), subject.picture(whole.latents)

    def curve(settings: Sequence[Any]) -> list[Point]:
        runs = (setting.run(subject, case, batch, native) for setting in settings)
        return sorted(point_of(run, subject, reference) for run in runs)

    return {
        "speca": curve([SpeCa((("threshold", threshold),)) for threshold in THRESHOLDS]),
        "fewer": curve([Uncached(steps) for steps in STEP_COUNTS]),
    }


def cell(curves: dict[str, list[Point]]) -> str:
    """SpeCa's PSNR at each speed, mean and worst sample, and in brackets how far the mean is above fewer steps."""
    parts = []
    for speed in SPEEDS:
        ours, fewer = at_least(curves["speca"], speed), at_least(curves["fewer"], speed)
        parts.append("-" if ours is None or fewer is None else _told(ours, fewer))
    return "; ".join(parts)


def _told(ours: Point, fewer: Point) -> str:
    return f"{ours.mean:.1f} / {ours.worst:.1f} ({ours.mean - fewer.mean:+.1f})"


def report(record: dict[str, Any]) -> str:
    rows: dict[str, dict[str, str]] = {}
    for model, of_model in record["curves"].items():
        for case, curves in of_model.items():
            points = {name: [Point(*point) for point in curve] for name, curve in curves.items()}
            rows.setdefault(case, {})[model] = cell(points)
    models = list(record["curves"])
    speeds = " and ".join(f"{speed:g}x" for speed in SPEEDS)
    caption = (
        f"SpeCa with other samplers, schedules and guidance: PSNR in dB at {speeds}, computed for real depth, mean /"
        f" worst sample,\nand in brackets how far the mean is above the same sampler with fewer steps."
        f" {record['steps']} steps, {record['samples']} samples."
    )
    head = ["sampler, schedule, guidance", *models]
    return markdown.table(caption, head, [[case, *(of.get(m, "-") for m in models)] for case, of in rows.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--cases", help="by name; default: all")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()

    environment.prepare()
    from measure.sampling import Case, batch_of
    from measure.subjects import load

    wanted = options.cases.split(",") if options.cases else [name_of(case) for case in CASES]
    path = options.out / "samplers-computed.json"
    record = json.loads(path.read_text()) if path.exists() else {"curves": {}, "weights": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        subject = load(name)
        record["weights"][name] = subject.weights
        batch = batch_of(subject, options.samples, FIRST_SEED)
        for case in [case for case in CASES if name_of(case) in wanted]:
            sampler, scheduler, cfg = case
            curves = compare(subject, Case(STEPS, sampler, scheduler, cfg), batch)
            record["curves"].setdefault(name, {})[name_of(case)] = curves
            print(f"{name} {name_of(case)}: {cell(curves)}", flush=True)
            record |= {"versions": environment.versions(), "steps": STEPS, "samples": options.samples}
            path.write_text(json.dumps(record) + "\n")
    path.with_suffix(".md").write_text(report(record) + "\n")
    print(report(record))


if __name__ == "__main__":
    main()
