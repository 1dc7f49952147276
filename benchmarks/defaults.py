"""The table that SpeCa's defaults were chosen by: one setting changed at a time, PSNR at equal computed speedup.

    python benchmarks/defaults.py            # the table, from the rows that are kept
    python benchmarks/defaults.py --measure  # the rows again; ten minutes

Rows come from `explore.py`, one file per model and setting in `results/defaults`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import environment

ROWS = environment.RESULTS / "defaults"
MODELS = {"flux": "FLUX", "dit": "DiT"}
STEPS, SAMPLES, FIRST_SEED = 28, 8, 100
SPEEDS = (2.0, 2.5, 3.0)
THRESHOLDS = (0.01, 0.014, 0.02, 0.028, 0.035, 0.045, 0.06, 0.08, 0.1, 0.13, 0.16)
GRID: dict[str, tuple[Any, ...]] = {
    "threshold_end_factor": (0.5, 1.0, 2.0),
    "noise_gain_limit": (2.0, 3.0, 4.0, 5.0, 7.0),
    "order": (1, 2, 3),
    "accumulate_error": (False, True),
    "warmup_steps": (1, 2, 3, 5),
}


def path_of(folder: Path, model: str, field: str) -> Path:
    return folder / f"{model}-{STEPS}-{field}.json"


def measure(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        for field, values in GRID.items():
            command = [
                *(sys.executable, str(Path(__file__).with_name("explore.py"))),
                *("--model", model, "--steps", str(STEPS), "--samples", str(SAMPLES)),
                *("--first-seed", str(FIRST_SEED), "--rivals", "none", "--json", str(path_of(folder, model, field))),
                *("--set", f"{field}={','.join(map(str, values))}"),
                *("--set", f"threshold={','.join(map(str, THRESHOLDS))}"),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"{model}: {field}", flush=True)


def qualities(rows: Sequence[dict[str, Any]], field: str, value: Any) -> str:
    """PSNR at `SPEEDS` of the rows with that value, over thresholds."""
    from quality import Point, quality_at

    points = [Point(row["speedup"], row["psnr"]) for row in rows if row["settings"][field] == value]
    found = [quality_at(points, speed) for speed in SPEEDS]
    return " / ".join("-" if psnr is None else f"{psnr:.1f}" for psnr in found)


def default_of(model: str, field: str) -> Any:
    from speca.adapters import ARCHITECTURES
    from speca.config import SpeCaConfig

    (architecture,) = (each for each in ARCHITECTURES if each.name == model)
    return getattr(SpeCaConfig().for_architecture(architecture.noise_gain_limit), field)


def table(folder: Path) -> str:
    lines = [f"| setting | {' | '.join(MODELS.values())} |", "| --- |" + " --- |" * len(MODELS)]
    for field, values in GRID.items():
        rows = {model: json.loads(path_of(folder, model, field).read_text())["rows"] for model in MODELS}
        for value in values:
            name = f"{field} {('off', 'on')[value] if isinstance(value, bool) else format(value, 'g')}"
            cells = [qualities(rows[model], field, value) for model in MODELS]
            chosen = [value == default_of(model, field) for model in MODELS]
            if all(chosen):
                name = f"**{name}**"
            else:
                cells = [f"**{cell}**" if its else cell for cell, its in zip(cells, chosen, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure all rows again")
    parser.add_argument("--out", type=Path, default=ROWS)
    options = parser.parse_args()
    environment.prepare()
    if options.measure:
        measure(options.out)
    print(table(options.out))


if __name__ == "__main__":
    main()
