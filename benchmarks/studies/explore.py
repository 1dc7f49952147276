"""What is a setting of SpeCa worth on one model, beside the best rival at the same speed? Many settings, quickly.

    python dev.py study explore --model flux --steps 50 --set threshold=0.05,0.1,0.2 --set order=1,2,3

`--set FIELD=V1,V2,...` may be given for every field of `SpeCaConfig`; all combinations are run, each over all samples
in one batch (SpeCa decides per sample, so a batch gives every sample the decisions that it would get alone). Printed
per setting: speedup computed for the real model's depth, PSNR against the uncached picture (mean, median and worst
sample), calls per sample, and dB above the best rival at that speedup. Curves of rivals are kept in
`benchmarks/out/explore` and computed again when the model's file changes (or with `--fresh`).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from measure import environment

OUT = environment.BENCHMARKS / "out" / "explore"
FRUGAL_RIVALS = ("fewer_steps", "taylor_last", "taylor_modules")
"""Rivals that run in batches. The core caches decide for a batch as a whole and are far below these."""


def parse_sets(texts: list[str]) -> dict[str, list[Any]]:
    """`["threshold=0.1,0.2", "forecaster=newton"]` -> {"threshold": [0.1, 0.2], "forecaster": ["newton"]}."""
    from dataclasses import fields

    from speca.config import SpeCaConfig

    defaults = {f.name: f.default for f in fields(SpeCaConfig)}
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in defaults:
            sys.exit(f"SpeCaConfig has no field {name!r}; choose among {', '.join(defaults)}")
        kind = float if defaults[name] is None else type(defaults[name])
        convert = (lambda v: v.lower() in ("1", "true", "on", "yes")) if kind is bool else kind
        grid[name] = [convert(value) for value in values.split(",")]
    return grid


def rival_points(names: tuple[str, ...], subject: Any, case: Any, batch: Any, reference: Any, fresh: bool) -> list[Any]:
    """[(family, label, Point)] of all settings of the rivals `names`, from the last time if nothing changed."""
    from measure.curve import Point
    from measure.quality import joint_speedup, mean, psnr
    from methods import METHODS
    from methods.base import run_setting

    native = reference.costs[0].native
    digest = hashlib.sha256(reference.latents.numpy().tobytes()).hexdigest()[:16]
    path = OUT / f"{subject.name}-{case.key}-{len(batch)}-{digest}.json"
    known = json.loads(path.read_text()) if path.is_file() and not fresh else {}
    pictures = subject.picture(reference.latents)
    points = []
    for name in names:
        if name not in known:
            began = time.perf_counter()
            known[name] = []
            for setting in METHODS[name].settings(False):
                if setting.fits(case):
                    run = run_setting(setting, subject, case, batch, native)
                    quality = mean(psnr(subject.picture(run.latents), pictures))
                    known[name].append(
                        [setting.family, setting.label, joint_speedup(run.costs, subject.depth), quality]
                    )
            OUT.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(known))
            print(f"  rival {name}: {len(known[name])} settings in {time.perf_counter() - began:.0f} s", flush=True)
        points += [(family, label, Point(speed, db)) for family, label, speed, db in known[name]]
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="flux", help="flux, dit, hunyuan_video, or tiny_flux and the like")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--cfg", type=float, help="guidance scale; default 1, no guidance")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=V1,V2", dest="sets")
    parser.add_argument("--rivals", default=",".join(FRUGAL_RIVALS), help="methods to compare with, or 'none'")
    parser.add_argument("--fresh", action="store_true", help="compute the rivals' curves again")
    parser.add_argument("--sort", choices=("given", "speedup", "gain"), default="given")
    parser.add_argument("--json", type=Path, help="also write all rows there")
    options = parser.parse_args()

    environment.prepare()
    from measure.curve import Point, at_least, frontier
    from measure.quality import joint_speedup, mean, median, psnr
    from measure.sampling import Case, batch_of
    from measure.subjects import load
    from methods.base import run_setting
    from methods.fewer_steps import Uncached
    from methods.speca import SpeCa

    grid = parse_sets(options.sets)
    subject = load(options.model)
    case = Case(options.steps, options.sampler, options.scheduler, options.cfg or 1.0)
    batch = batch_of(subject, options.samples, options.first_seed)
    reference = Uncached().run(subject, case, batch)
    native = reference.costs[0].native
    pictures = subject.picture(reference.latents)
    print(
        f"{subject.name} ({subject.blocks} blocks, speedups for {subject.depth}), {case.key}, {len(batch)} samples, "
        f"{native} calls uncached in {reference.seconds:.1f} s"
    )
    names = () if options.rivals == "none" else tuple(options.rivals.split(","))
    rivals = rival_points(names, subject, case, batch, reference, options.fresh)
    families = {family: [p for f, _, p in rivals if f == family] for family, _, _ in rivals}

    def best_rival(speed: float) -> tuple[float, str] | None:
        reached = [(at_least(frontier(points), speed), family) for family, points in families.items()]
        return max(((point.mean, family) for point, family in reached if point is not None), default=None)

    for speed in (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0):
        best = best_rival(speed)
        if best:
            print(f"  best rival at {speed:g}x: {best[0]:.1f} dB, {best[1]}")

    rows = []
    print(f"\n{'speedup':>8} {'PSNR':>6} {'median':>6} {'worst':>6} {'gain':>6}  full/acc/rej   sec  setting")
    for values in itertools.product(*grid.values()):
        setting = SpeCa(tuple(zip(grid, values, strict=True)))
        run = run_setting(setting, subject, case, batch, native)
        values_db = psnr(subject.picture(run.latents), pictures)
        speed = joint_speedup(run.costs, subject.depth)
        best = best_rival(speed)
        row = {
            "settings": dict(setting.settings),
            "speedup": speed,
            "psnr": mean(values_db),
            "median": median(values_db),
            "worst": min(values_db),
            "gain": mean(values_db) - best[0] if best else None,
            "rival": best[1] if best else None,
            "full": mean([c.full for c in run.costs]),
            "accepted": mean([c.verified for c in run.costs]),
            "rejected": mean([c.rejected for c in run.costs]),
            "seconds": run.seconds,
        }
        rows.append(row)
        if options.sort == "given":
            print(line(row), flush=True)
    if options.sort != "given":
        for row in sorted(rows, key=lambda r: -(r[options.sort] if r[options.sort] is not None else -99)):
            print(line(row))
    print("\nfrontier of these settings:")
    ahead = frontier([Point(r["speedup"], r["psnr"]) for r in rows])
    for row in sorted(rows, key=lambda r: r["speedup"]):
        if Point(row["speedup"], row["psnr"]) in ahead:
            print(line(row))
    if options.json:
        options.json.write_text(json.dumps({"model": subject.name, "case": case.key, "rows": rows}, indent=1))


def line(row: dict[str, Any]) -> str:
    gain = f"{row['gain']:+6.1f}" if row["gain"] is not None else "     -"
    calls = f"{row['full']:4.1f}/{row['accepted']:4.1f}/{row['rejected']:4.1f}"
    setting = " ".join(f"{k}={v}" for k, v in row["settings"].items())
    return (
        f"{row['speedup']:7.2f}x {row['psnr']:6.1f} {row['median']:6.1f} {row['worst']:6.1f} {gain}  {calls} "
        f"{row['seconds']:5.1f}  {setting}"
    )


if __name__ == "__main__":
    main()
