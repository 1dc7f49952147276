"""Table, plot and summary of the benchmark, made from its CSV alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measure.curve import Point, at_least, frontier
from methods import METHODS, RIVALS

from .markdown import table

Row = Mapping[str, str]

SPEEDS = (2.0, 3.0, 5.0)
MEASURED_SPEEDS = (1.5, 2.0, 2.5, 3.0)
TITLES = {"flux": "FLUX", "dit": "DiT", "hunyuan_video": "HunyuanVideo"}


@dataclass(frozen=True)
class Cell:
    """The rows of one model and case."""

    model: str
    depth: int
    steps: int
    sampler: str
    scheduler: str
    cfg: float
    rows: tuple[Row, ...]

    @property
    def usual(self) -> bool:
        return (self.sampler, self.scheduler, self.cfg) == ("euler", "simple", 1.0)

    @property
    def title(self) -> str:
        return TITLES.get(self.model, self.model)

    @property
    def methods(self) -> list[str]:
        return [name for name in METHODS if any(row["method"] == name for row in self.rows)]

    def points(self, method: str, speed: str = "speedup", quality: str = "psnr_mean") -> list[Point]:
        return [
            Point(float(row[speed]), float(row[quality]))
            for row in self.rows
            if row["method"] == method and row[speed] and row[quality]
        ]

    def at(self, speed: float, column: str = "speedup") -> dict[str, float]:
        """Method -> PSNR at a speedup, for the methods that are that fast."""
        reached = {name: at_least(frontier(self.points(name, column)), speed) for name in self.methods}
        return {name: point.mean for name, point in reached.items() if point is not None}


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    grouped: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "depth", "steps", "sampler", "scheduler", "cfg"))
        grouped.setdefault(key, []).append(row)
    return [
        Cell(model, int(depth), int(steps), sampler, scheduler, float(cfg), tuple(found))
        for (model, depth, steps, sampler, scheduler, cfg), found in grouped.items()
    ]


def best_rival(at: Mapping[str, float]) -> tuple[str, float] | None:
    """The best method that is not SpeCa."""
    rivals = [(name, value) for name, value in at.items() if name in RIVALS]
    return max(rivals, key=lambda pair: pair[1], default=None)


def ranking(at: Mapping[str, float]) -> list[str]:
    """Methods from the best down."""
    return sorted(at, key=lambda name: -at[name])


RESULTS = Path(__file__).resolve().parent.parent / "results"


def write(rows: Sequence[Row], out: Path) -> str:
    """Write `summary.md`, `summary.json` and the plots into `out`.

    Returns what to print.
    """
    cells = sorted(cells_of(rows), key=lambda c: (list(TITLES).index(c.model) if c.model in TITLES else 9, -c.steps))
    if not cells:
        return "nothing measured yet"
    out.mkdir(parents=True, exist_ok=True)
    usual = [cell for cell in cells if cell.usual]
    timed = [cell for cell in usual if cell.points("speca", "measured_speedup")]
    parts = (
        main_table(usual) if usual else "",
        surpassed(usual) if usual else "",
        other_cases(cells),
        wall_clock(timed) if timed else "",
    )
    text = "\n\n".join(part for part in parts if part)
    summary = {
        f"{c.model}-{c.steps}-{c.sampler}-{c.scheduler}-cfg{c.cfg:g}": {f"{s:g}x": c.at(s) for s in SPEEDS}
        for c in cells
    }
    (out / "summary.md").write_text(text + "\n")
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if usual:
        plot(usual, out / "psnr-computed.png", "speedup", "speedup computed for the real model's depth")
        if timed:
            plot(timed, out / "psnr-measured.png", "measured_speedup", "measured speedup of the small model, batch 1")
    return text


def main_table(usual: Sequence[Cell]) -> str:
    """PSNR at equal speed for every method; euler, simple schedule, no guidance."""
    names = [name for name in METHODS if any(name in cell.methods for cell in usual)]
    head = [f"{cell.title}, {cell.steps} steps" for cell in usual]
    at = {id(cell): {speed: cell.at(speed) for speed in SPEEDS} for cell in usual}
    rows = []
    for name in names:
        columns = [
            " / ".join(_cell_text(at[id(cell)][speed], name) for speed in SPEEDS) if name in cell.methods else ""
            for cell in usual
        ]
        title = f"**{METHODS[name].title}**" if name == "speca" else METHODS[name].title
        rows.append([title, *columns])
    gains = [" / ".join(_gain(at[id(cell)][speed]) for speed in SPEEDS) for cell in usual]
    return table(
        "PSNR in dB against the uncached picture at a speedup of 2x / 3x / 5x, computed for the real model's depth "
        "(57, 28, 60 blocks); euler, simple schedule, no guidance. A dash: never that fast.",
        ["", *head],
        [*rows, ["SpeCa above the best rival", *gains]],
    )


def surpassed(usual: Sequence[Cell]) -> str:
    """Where between two speeds of the main table a rival is ahead of SpeCa, and by how much."""
    rows = []
    for cell in usual:
        behind: list[tuple[float, str, float]] = []
        for tenths in range(15, 61):
            at = cell.at(tenths / 10)
            best = best_rival(at)
            if "speca" in at and best is not None and best[1] > at["speca"]:
                behind.append((tenths / 10, METHODS[best[0]].title, best[1] - at["speca"]))
        for title, spans in itertools.groupby(_spans(behind), key=lambda span: span[0][1]):
            texts = [
                f"{span[0][0]:g}x to {span[-1][0]:g}x (up to {max(ahead for _, _, ahead in span):.1f} dB)"
                for span in spans
            ]
            rows.append([cell.title, f"{cell.steps}", title, ", ".join(texts)])
    return table(
        "Where from 1.5x to 6x, in steps of 0.1x, a rival is above SpeCa; computed speedup, euler, simple schedule, no "
        "guidance.",
        ["model", "steps", "ahead of SpeCa", "where"],
        rows or [["", "", "none", ""]],
    )


def _spans(behind: Sequence[tuple[float, str, float]]) -> list[list[tuple[float, str, float]]]:
    """Runs of neighbouring speeds at which the same rival is ahead."""
    spans: list[list[tuple[float, str, float]]] = []
    for here in behind:
        last = spans[-1][-1] if spans else None
        if last is not None and last[1] == here[1] and here[0] - last[0] < 0.15:
            spans[-1].append(here)
        else:
            spans.append([here])
    return spans


def _cell_text(at: Mapping[str, float], name: str) -> str:
    if name not in at:
        return "-"
    text = f"{at[name]:.1f}"
    return f"**{text}**" if ranking(at)[0] == name else text


def _gain(at: Mapping[str, float]) -> str:
    best = best_rival(at)
    if "speca" not in at:
        return "-"
    return f"{at['speca'] - best[1]:+.1f}" if best else "alone"


def other_cases(cells: Sequence[Cell]) -> str:
    """SpeCa against the best rival with other samplers, schedules and guidance."""
    others = [cell for cell in cells if not cell.usual and "speca" in cell.methods and len(cell.methods) > 1]
    if not others:
        return ""
    return table(
        "Other samplers, schedules and guidance: SpeCa's PSNR, and in brackets dB above the best rival.",
        ["model", "steps", "sampler", "schedule", "cfg", *(f"{speed:g}x" for speed in SPEEDS)],
        [
            [
                c.title,
                f"{c.steps}",
                c.sampler,
                c.scheduler,
                f"{c.cfg:g}",
                *(_against(c.at(speed), _gain) for speed in SPEEDS),
            ]
            for c in others
        ],
    )


def wall_clock(timed: Sequence[Cell]) -> str:
    """SpeCa against the best rival at equal measured speedup."""

    def gain_over(at: Mapping[str, float]) -> str:
        best = best_rival(at)
        return f"{_gain(at)}, {METHODS[best[0]].title}" if best else _gain(at)

    return table(
        "At equal *measured* speedup of the small models, batch 1, euler, simple schedule, no guidance: SpeCa's PSNR, "
        "and in brackets dB above the best rival and which that is.",
        ["model", "steps", *(f"{speed:g}x" for speed in MEASURED_SPEEDS)],
        [
            [
                c.title,
                f"{c.steps}",
                *(_against(c.at(speed, "measured_speedup"), gain_over) for speed in MEASURED_SPEEDS),
            ]
            for c in timed
        ],
    )


def _against(at: Mapping[str, float], gain: Callable[[Mapping[str, float]], str]) -> str:
    return f"{at['speca']:.1f} ({gain(at)})" if "speca" in at else "-"


def plot(cells: Sequence[Cell], path: Path, speed: str, label: str) -> None:
    """PSNR against speedup, a panel per model and step count, a curve per method (the frontier of its settings)."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(cell.model for cell in cells))
    steps = sorted({cell.steps for cell in cells}, reverse=True)
    # A single column would be too narrow for the legend: then the models stand side by side.
    in_a_row = len(steps) == 1
    rows, columns = (1, len(models)) if in_a_row else (len(models), len(steps))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False, layout="constrained"
    )
    colours = dict(zip(METHODS, itertools.cycle(pyplot.get_cmap("tab20").colors), strict=False))
    markers = dict(zip(METHODS, itertools.cycle("sv^dphP"), strict=False)) | {"speca": "o"}
    handles = {}
    for cell in cells:
        model, step = models.index(cell.model), steps.index(cell.steps)
        axis = axes[0][model] if in_a_row else axes[model][step]
        for name in cell.methods:
            curve = frontier([p for p in cell.points(name, speed) if p.mean < 80])
            if not curve:
                continue
            strong = name == "speca"
            (handles[METHODS[name].title],) = axis.plot(
                [p.speed for p in curve],
                [p.mean for p in curve],
                marker=markers[name],
                markersize=5 if strong else 3.5,
                linewidth=2.4 if strong else 1.1,
                color="black" if strong else colours[name],
                label=METHODS[name].title,
            )
        axis.set_title(f"{cell.title}, {cell.steps} steps", fontsize=10)
        axis.set_xscale("log")
        ticks = [1, 1.5, 2, 3, 4, 5, 6, 8, 10]
        axis.set_xticks(ticks, [f"{t:g}x" for t in ticks])
        axis.minorticks_off()
        axis.set_xlim(0.9, 10)
        axis.grid(alpha=0.3)
        axis.set_xlabel(label, fontsize=8)
        axis.set_ylabel("PSNR, dB", fontsize=8)
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
