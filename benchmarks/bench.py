"""The benchmark: every method in one process of the real ComfyUI, interleaved, over the trained models.

    python dev.py bench --quick                    the left-out table again, in under ten minutes
    python dev.py bench --left-out                 what is chosen on all models but one, scored on that one; hours
    python dev.py bench --quick --first-seed 7000  the same of samples that nobody has seen
    python dev.py bench --unseen                   as shipped, on models that nothing was chosen on
    python dev.py bench                            the emoji models, every case; hours; goes on where it was stopped
    python dev.py bench --models flux --steps 28,50 --methods speca,taylor_modules

A *cell* is a model with a case (steps, sampler, scheduler, guidance). In each cell every setting of every method
samples the same seeds and classes, and is compared with the uncached pictures. Rows are appended to
`benchmarks/results/benchmark.csv` as they are measured; rows that are there already are not measured again, unless a
model's weights have changed since, or `--again speca` asks for it (after a change of SpeCa or of its defaults). Then
table, plot and summary are made from the CSV alone (`--report` does only that).

Seconds are wall-clock at batch 1. Other work on the machine disturbs them, so methods take turns, an uncached run
among them, and only the median ratio to the uncached runs around it is reported as measured speedup.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import environment

SDE_SAMPLERS = ("dpmpp_2m_sde",)
SAMPLES = 16
LEFT_OUT_SAMPLES = 4
QUICK_SAMPLES = 2
STEPS = (50, 28, 20)
QUICK_STEPS = 28
TIMING_ROUNDS = 9

COLUMNS = (
    *("model", "depth", "steps", "sampler", "scheduler", "cfg", "method", "family", "label", "samples"),
    *("speedup", "psnr_mean", "psnr_median", "psnr_p10", "psnr_worst", "ssim_mean", "ssim_median", "latent_error"),
    *("full", "accepted", "rejected", "forecast", "native_calls", "blocks", "native_blocks", "cache_bytes"),
    *("seconds", "native_seconds", "measured_speedup", "version", "weights"),
)


@dataclass(frozen=True)
class Cell:
    """A model with a case. `thorough` cells get every setting and timings, others fewer settings."""

    model: str
    case: Any
    thorough: bool


def star(models: list[str], steps: list[int], cfg: float) -> list[Cell]:
    """The usual case at every step count, and around it one thing changed at a time."""
    from measure.sampling import Case

    cells = []
    for model in models:
        cells += [Cell(model, Case(n), True) for n in steps]
        around = [Case(n, "euler", "simple", cfg) for n in steps]
        around += [Case(n, sampler) for sampler in ("dpmpp_2m", "heun", *SDE_SAMPLERS) for n in steps]
        around += [Case(n, "euler", scheduler) for scheduler in ("beta", "normal") for n in steps]
        cells += [Cell(model, case, False) for case in around]
    return cells


def product(models: list[str], steps: list[int], options: argparse.Namespace) -> list[Cell]:
    """Every combination of what was asked for."""
    from measure.sampling import Case

    return [
        Cell(model, case, case == Case(n))
        for model in models
        for n in steps
        for sampler in options.samplers
        for scheduler in options.schedulers
        for cfg in options.cfg
        for case in [Case(n, sampler, scheduler, cfg)]
    ]


class Table:
    """The CSV: rows are appended as they come; those that are there already are known by their key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))
        self._keys = {self._key(row) for row in self.rows}

    @staticmethod
    def _key(row: dict[str, Any]) -> tuple[str, ...]:
        names = ("model", "steps", "sampler", "scheduler", "cfg", "family", "label", "samples")
        return tuple(_text(row[name]) for name in names)

    def __contains__(self, row: dict[str, Any]) -> bool:
        return self._key(row) in self._keys

    def keep(self, wanted: Callable[[dict[str, str]], bool]) -> None:
        """Drop all other rows, so that they are measured again."""
        kept = [row for row in self.rows if wanted(row)]
        if len(kept) == len(self.rows):
            return
        self.rows = kept
        self._keys = {self._key(row) for row in self.rows}
        self.rewrite()

    def find(self, row: dict[str, Any]) -> dict[str, str] | None:
        return next((known for known in self.rows if self._key(known) == self._key(row)), None)

    def rewrite(self) -> None:
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def append(self, row: dict[str, Any]) -> None:
        texts = {name: _text(row.get(name, "")) for name in COLUMNS}
        new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(texts)
        self.rows.append(texts)
        self._keys.add(self._key(texts))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def identity_of(subject: Any, case: Any, samples: int) -> dict[str, Any]:
    """The columns that say what was measured, whatever the method."""
    return {
        "model": subject.name,
        "depth": subject.depth,
        "steps": case.steps,
        "sampler": case.sampler,
        "scheduler": case.scheduler,
        "cfg": case.cfg,
        "samples": samples,
    }


def settings_of(methods: list[str], short: bool) -> list[tuple[str, Any]]:
    """(method, setting) of every point of every method's curve."""
    from methods import METHODS

    return [(name, setting) for name in methods for setting in METHODS[name].settings(short)]


def measure(
    subject: Any, cell: Cell, settings: list[tuple[str, Any]], samples: int, table: Table, first_seed: int = 0
) -> None:
    """The settings of a cell that the table lacks: quality and calls."""
    from measure.quality import joint_speedup, mean, median, psnr, relative_error, ssim, tenth_percentile
    from measure.sampling import batch_of
    from methods.base import run_setting
    from methods.fewer_steps import Uncached

    case = cell.case
    identity = {
        **identity_of(subject, case, samples),
        "version": environment.commit(),
        "weights": subject.weights,
    }
    wanted = [
        (name, setting)
        for name, setting in settings
        if setting.fits(case)
        if {**identity, "family": setting.family, "label": setting.label} not in table
    ]
    if not wanted:
        return
    began = time.perf_counter()
    batch = batch_of(subject, samples, first_seed)
    reference = Uncached().run(subject, case, batch)
    native = reference.costs[0].native
    references = {False: reference, True: reference}
    if case.sampler in SDE_SAMPLERS and any(setting.one_by_one for _, setting in wanted):
        # These samplers draw noise for the whole batch at once: a sample alone takes another path.
        references[True] = run_setting(Uncached(one_by_one=True), subject, case, batch, native)
    for name, setting in wanted:
        run = run_setting(setting, subject, case, batch, native)
        truth = references[setting.one_by_one]
        pictures, true_pictures = subject.picture(run.latents), subject.picture(truth.latents)
        decibels, likeness = psnr(pictures, true_pictures), ssim(pictures, true_pictures)
        table.append(
            {
                **identity,
                "method": name,
                "family": setting.family,
                "label": setting.label,
                "speedup": joint_speedup(run.costs, subject.depth),
                "psnr_mean": mean(decibels),
                "psnr_median": median(decibels),
                "psnr_p10": tenth_percentile(decibels),
                "psnr_worst": min(decibels),
                "ssim_mean": mean(likeness),
                "ssim_median": median(likeness),
                "latent_error": mean(relative_error(run.latents, truth.latents)),
                "full": mean([c.full for c in run.costs]),
                "accepted": mean([c.verified for c in run.costs]),
                "rejected": mean([c.rejected for c in run.costs]),
                "forecast": mean([c.forecast for c in run.costs]),
                "native_calls": native,
                "blocks": mean([c.blocks(subject.blocks) for c in run.costs]),
                "native_blocks": native * subject.blocks,
                "cache_bytes": run.cache_bytes,
            }
        )
    print(f"{subject.name} {case.key}: {len(wanted)} settings in {time.perf_counter() - began:.0f} s", flush=True)


def time_cell(
    subject: Any, cell: Cell, methods: list[str], again: list[str], samples: int, rounds: int, table: Table
) -> None:
    """Seconds of all settings of a cell whose rows in the table lack them, or whose method is timed `again`."""
    from methods import METHODS

    identity = identity_of(subject, cell.case, samples)
    found = [
        (setting, table.find({**identity, "family": setting.family, "label": setting.label}))
        for name in methods
        for setting in METHODS[name].settings(False)
        if setting.fits(cell.case)
    ]
    untimed = {
        setting: row for setting, row in found if row is not None and (not row["seconds"] or row["method"] in again)
    }
    if not untimed:
        return
    began = time.perf_counter()
    native = round(float(next(iter(untimed.values()))["native_calls"]))
    for setting, (seconds, native_seconds) in time_settings(subject, cell.case, list(untimed), native, rounds).items():
        untimed[setting]["seconds"] = _text(seconds)
        untimed[setting]["native_seconds"] = _text(native_seconds)
        untimed[setting]["measured_speedup"] = _text(native_seconds / seconds)
    table.rewrite()
    print(f"{subject.name} {cell.case.key}: {len(untimed)} timed in {time.perf_counter() - began:.0f} s", flush=True)


def time_settings(
    subject: Any, case: Any, settings: list[Any], native: int, rounds: int
) -> dict[Any, tuple[float, float]]:
    """(seconds, uncached seconds) at batch 1 by setting, medians over rounds; settings take turns, uncached between."""
    from measure.quality import median
    from measure.sampling import batch_of
    from methods.fewer_steps import Uncached

    taken: dict[Any, list[tuple[float, float]]] = {setting: [] for setting in settings}
    for n in range(rounds):
        single = batch_of(subject, 1, first_seed=n)
        before = Uncached().run(subject, case, single).seconds
        for start in range(0, len(settings), 4):
            group = [(s, s.run(subject, case, single, native).seconds) for s in settings[start : start + 4]]
            after = Uncached().run(subject, case, single).seconds
            for setting, seconds in group:
                taken[setting].append((seconds, (before + after) / 2))
            before = after
    result = {}
    for setting, pairs in taken.items():
        if pairs:
            seconds = median([s for s, _ in pairs])
            result[setting] = (seconds, seconds * median([u / s for s, u in pairs]))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def listed(kind: type) -> Any:
        return lambda text: [kind(part) for part in text.split(",")]

    parser.add_argument("--quick", action="store_true", help="the left-out table again, from fewer samples")
    parser.add_argument("--left-out", action="store_true", help="choose on all models but one, score on that one")
    parser.add_argument("--unseen", action="store_true", help="as shipped, on models that nothing was chosen on")
    parser.add_argument("--models", type=listed(str), help="default: the emoji models, or those that the table is of")
    parser.add_argument("--methods", type=listed(str), help="default: all")
    parser.add_argument("--steps", type=listed(int), help=f"default {STEPS}, quick {QUICK_STEPS}")
    parser.add_argument("--samplers", type=listed(str), help="with --schedulers and --cfg: all their combinations")
    parser.add_argument("--schedulers", type=listed(str))
    parser.add_argument("--cfg", type=listed(float))
    parser.add_argument("--full-grid", action="store_true", help="every sampler x scheduler x guidance; a day")
    parser.add_argument("--samples", type=int, help=f"default {SAMPLES}, left out {LEFT_OUT_SAMPLES}")
    parser.add_argument("--first-seed", type=int, default=0, help="with --quick: of other samples")
    parser.add_argument("--again", type=listed(str), default=[], metavar="METHODS", help="measure these again")
    parser.add_argument("--time-again", type=listed(str), default=[], metavar="METHODS", help="only their seconds")
    parser.add_argument("--short", action="store_true", help="fewer settings per method everywhere")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--rounds", type=int, default=TIMING_ROUNDS, help=f"of timing; default {TIMING_ROUNDS}")
    parser.add_argument("--out", type=Path, help="default benchmarks/results, quick benchmarks/out/quick")
    parser.add_argument("--no-report", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only make table and plot from the CSV that is there")
    options = parser.parse_args()
    if options.first_seed and not options.quick:
        parser.error("--first-seed goes with --quick: elsewhere rows of other samples would stand beside kept ones")

    out = options.out or (environment.BENCHMARKS / "out" / "quick" if options.quick else environment.RESULTS)
    began = time.perf_counter()
    environment.prepare()
    if options.quick:
        options.steps = options.steps or [QUICK_STEPS]
        if not options.left_out:
            in_parallel(options, out)
            options.report = True
    options.steps = options.steps or STEPS
    if options.quick or options.left_out or options.unseen:
        left_out(options, out)
    else:
        table = Table(out / "benchmark.csv")
        if not options.report:
            measure_all(options, table, out)
        if options.no_report:
            return
        from tables import summary

        print(summary.write(table.rows, out))
        print(f"\n{table.path}, table and plot beside it")
    print(f"{time.perf_counter() - began:.0f} s")


def left_out(options: argparse.Namespace, out: Path) -> None:
    """Measure what the left-out rows lack, model by model, then choose and score from the rows alone.

    `--quick` goes by the kept rows: of SpeCa it measures what those of the other models choose, in the place of all
    that there is to choose from, and of every method the settings that tell of the speeds in the table.
    `--unseen` measures what is shipped, on models that have no say in any choice.
    """
    from left_out import grid
    from left_out.choose import beyond_sight, choose, gather, of_sampler
    from measure.sampling import Case
    from measure.subjects import load, of_zoo, unseen
    from methods import METHODS, OWN
    from tables import left_out as tables

    table, models = Table(out / csv_of(options)), options.models or (unseen() if options.unseen else of_zoo())
    samples = options.samples or (QUICK_SAMPLES if options.quick else LEFT_OUT_SAMPLES)
    others = [name for name in options.methods or METHODS if name != "speca"]
    reported = dict.fromkeys([*models, *(row["model"] for row in table.rows)])  # with what is there from another time
    chosen: dict[str, str] | None = dict.fromkeys(reported, grid.defaults().name) if options.unseen else None
    beyond: set[tuple[str, ...]] = set()
    if options.quick:
        kept = of_sampler(Table(environment.RESULTS / "left-out.csv").rows)
        measured = gather(kept, OWN)
        chosen = {name: choose(measured, name, grid.defaults().name) for name in reported}
        beyond = beyond_sight(kept)
    for name in () if options.report else models:
        subject = load(name)
        table.keep(lambda row, s=subject: row["model"] != s.name or row["weights"] == s.weights)
        table.keep(lambda row, s=subject: row["model"] != s.name or row["method"] not in options.again)
        note_run(out, options, {name: subject})
        for steps in options.steps:
            # The short list of each method: it covers 1.5x to 6x, and every place is measured alike.
            tried = [each for each in grid.candidates(steps) if chosen is None or each.name == chosen[name]]
            settings = [
                (method, setting)
                for method, setting in [
                    *settings_of(others, True),
                    *(("speca", s) for c in tried for s in c.settings()),
                ]
                if (name, f"{steps}", setting.family, setting.label) not in beyond
            ]
            measure(subject, Cell(name, Case(steps), False), settings, samples, table, options.first_seed)
        if chosen is None and grid.CHOSEN_AT in options.steps:
            tried = [
                ("speca", setting)
                for each in grid.candidates_with_noise()
                for setting in each.settings(grid.NOISY_THRESHOLDS)
            ]
            cell = Cell(name, Case(grid.CHOSEN_AT, grid.NOISY), False)
            measure(subject, cell, [*settings_of(["fewer_steps"], True), *tried], samples, table)
    if options.no_report:
        return
    if chosen is None and not options.report:
        measured = gather(of_sampler(table.rows), OWN)
        for name in models:
            own = choose(measured, name, grid.defaults().name)
            (candidate,) = [each for each in grid.candidates(grid.CHOSEN_AT) if each.name == own]
            for steps in options.steps:
                if own not in measured[name, steps].candidates:  # the choice fell on what was tried elsewhere alone
                    settings = [("speca", setting) for setting in candidate.settings()]
                    measure(load(name), Cell(name, Case(steps), False), settings, samples, table)
    print(tables.write(table.rows, out, chosen, table.path.stem))
    if options.quick:
        then = json.loads((environment.RESULTS / "left-out.json").read_text())
        now = json.loads(table.path.with_suffix(".json").read_text())
        print("\n" + tables.compared(now, then))


def csv_of(options: argparse.Namespace) -> str:
    """Where the rows of a table go that is of other models or of other samples than the usual one."""
    return "unseen.csv" if options.unseen else "other-samples.csv" if options.first_seed else "left-out.csv"


def in_parallel(options: argparse.Namespace, out: Path) -> None:
    """`--left-out --quick` in a process per model, as many at a time as there are cores; then their rows in one CSV.

    Within a model every method still takes its turn in one process.
    """
    from concurrent.futures import ThreadPoolExecutor

    from measure.subjects import of_zoo

    if options.out is None:
        shutil.rmtree(out, ignore_errors=True)  # a quick run measures; it does not go on
    elif out.is_dir() and any(out.iterdir()):
        sys.exit(f"{out} is not empty, and a quick run measures anew: give a new folder")
    models = options.models = options.models or list(of_zoo())
    given = [a for i, a in enumerate(sys.argv[1:]) if a != "--models" and sys.argv[i] != "--models"]

    def one(model: str) -> int:
        command = [sys.executable, __file__, "--left-out", *given, "--models", model, "--no-report"]
        return subprocess.run([*command, "--out", out / model]).returncode

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        if any(list(pool.map(one, models))):
            sys.exit("one of the models could not be measured; see above")
    table = Table(out / csv_of(options))
    for model in models:
        for row in Table(out / model / csv_of(options)).rows:
            table.append(row)


def measure_all(options: argparse.Namespace, table: Table, out: Path) -> None:
    from measure.subjects import EMOJI, SubjectMissingError, load
    from methods import METHODS

    methods = options.methods or ["speca", *(name for name in METHODS if name != "speca")]
    if unknown := [name for name in methods if name not in METHODS]:
        sys.exit(f"no method is called {unknown[0]!r}; choose among {', '.join(METHODS)}")
    subjects = {}
    for name in options.models or EMOJI:
        try:
            subjects[name] = load(name)
        except SubjectMissingError as missing:
            print(f"left out: {missing}")
    table.keep(lambda row: row["model"] not in subjects or row["weights"] == subjects[row["model"]].weights)
    table.keep(lambda row: row["model"] not in subjects or row["method"] not in options.again)
    models, guided = list(subjects), 2.5
    if options.full_grid:
        options.samplers = options.samplers or ["euler", "dpmpp_2m", "heun", *SDE_SAMPLERS]
        options.schedulers = options.schedulers or ["simple", "beta", "normal"]
        options.cfg = options.cfg or [1.0, guided]
    if options.samplers or options.schedulers or options.cfg:
        options.samplers, options.schedulers = options.samplers or ["euler"], options.schedulers or ["simple"]
        options.cfg = options.cfg or [1.0]
        cells = product(models, options.steps, options)
    else:
        cells = star(models, options.steps, guided)
    cells.sort(key=lambda cell: not cell.thorough)  # the cells that the summary needs come first
    note_run(out, options, subjects)
    samples = options.samples or SAMPLES
    for cell in cells:
        short = options.short or not cell.thorough
        measure(subjects[cell.model], cell, settings_of(methods, short), samples, table)
    for cell in [] if options.no_timing else [cell for cell in cells if cell.thorough]:
        time_cell(subjects[cell.model], cell, methods, options.time_again, samples, options.rounds, table)


def note_run(out: Path, options: argparse.Namespace, subjects: dict[str, Any]) -> None:
    """Add this run's command and versions to `runs.json`, beside the figures it makes."""
    from speca.config import SpeCaConfig

    path = out / "runs.json"
    runs = json.loads(path.read_text()) if path.is_file() else []
    entry = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": shlex.join(["python", "dev.py", "bench", *sys.argv[1:]]),
        "versions": environment.versions(),
        "speca_defaults": SpeCaConfig().to_json(),
        "models": {
            name: {
                "weights": s.weights,
                "blocks": s.blocks,
                "computed_for_blocks": s.depth,
                "latent": list(s.latent_shape),
            }
            for name, s in subjects.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*runs, entry], indent=1) + "\n")


if __name__ == "__main__":
    main()
