"""The left-out table and plot, made from the rows alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, mode, pstdev
from typing import Any

from left_out.choose import SHOWN, Measured, Row, Where, best_of, candidate_of, choose, gather, of_sampler
from left_out.grid import CHOSEN_AT, NOISY, defaults
from measure.curve import at_least
from methods import METHODS, OWN

from .markdown import table

README_STEPS = 28


def write(
    rows: Sequence[Row], out: Path, chosen: Mapping[str, str] | None = None, name_of_files: str = "left-out"
) -> str:
    """Write `left-out.md`, `left-out.json` and the plot into `out`, by this name or another; returns the text.

    chosen: the candidate of each model, where other rows than these chose it.
    """
    with_noise = gather(of_sampler(rows, NOISY), OWN)
    rows = of_sampler(rows)
    measured = gather(rows, OWN)
    models = list(dict.fromkeys(model for model, _ in measured))
    if chosen is None:
        if len(models) < 2:
            return "nothing to leave out: fewer than two models are measured"
        chosen = {model: choose(measured, model, defaults().name) for model in models}
    at_thresholds = by_threshold(rows)
    parts = (
        *(_table(measured, chosen, steps) for steps in sorted({s for _, s in measured}, reverse=True)),
        _thresholds(at_thresholds),
        _worth_of_checks(measured, chosen),
        _choices(measured, chosen) if name_of_files == "left-out" else "",
        _other_choices(measured, chosen),
        _with_noise(with_noise),
        _goals(measured, chosen),
    )
    text = "\n\n".join(part for part in parts if part)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name_of_files}.md").write_text(text + "\n")
    record: dict[str, Any] = {
        f"{model}-{steps}": {
            "chosen": chosen[model],
            "at": {
                f"{speed:g}x": {
                    name: {figure: getattr(quality, figure) for figure in ("mean", "tenth", "worst")}
                    for name, curve in (
                        *m.rivals.items(),
                        *m.unchecked.items(),
                        ("speca", m.candidates.get(chosen[model], ())),
                    )
                    if (quality := at_least(curve, speed))
                }
                for speed in SHOWN
            },
        }
        for (model, steps), m in measured.items()
    }
    record["thresholds"] = {
        f"{threshold:g}": {"mean": fmean(q for q, _ in at), "deviation": pstdev(q for q, _ in at)}
        for threshold, at in at_thresholds.items()
    }
    (out / f"{name_of_files}.json").write_text(json.dumps(record, indent=1) + "\n")
    plot(measured, chosen, out / f"{name_of_files}.png")
    return text


def compared(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Whether two records of `write` rank the methods alike, by their means over the models that both have.

    Two methods are compared where both are that fast in both records. Those within 1 dB in either are tied.
    """
    places = [place for place in now if place != "thresholds" and place in then]
    same, lines = 0, []
    for speed in (f"{speed:g}x" for speed in SHOWN):
        pairs = [(now[place]["at"][speed], then[place]["at"][speed]) for place in places]
        swapped = []
        for a, b in itertools.combinations(METHODS, 2):
            gaps = [
                [at[a]["mean"] - at[b]["mean"] for at in pair]
                for pair in pairs
                if all(name in at for at in pair for name in (a, b))
            ]
            if gaps:
                one, other = (fmean(column) for column in zip(*gaps, strict=True))
                if one * other < 0 and min(abs(one), abs(other)) > 1:
                    swapped.append(
                        f"  {speed}: {METHODS[a].title} and {METHODS[b].title}, {other:+.1f} dB, now {one:+.1f}"
                    )
        same += not swapped
        lines += swapped
    head = f"Methods rank as in benchmarks/results at {same} of {len(SHOWN)} speeds, ties within 1 dB aside."
    return "\n".join([head, *lines])


def _table(measured: Mapping[Where, Measured], chosen: Mapping[str, str], steps: int) -> str:
    here = {model: m for (model, n), m in measured.items() if n == steps}
    return table(
        f"{steps} steps: SpeCa's PSNR in dB, mean / tenth percentile / worst sample, and in brackets how far its mean "
        "is above the best rival's, and which that is.",
        ["left out", *(f"{speed:g}x" for speed in SHOWN)],
        [[model, *(_cell(m, chosen[model], speed) for speed in SHOWN)] for model, m in here.items()],
    )


def _cell(m: Measured, candidate: str, speed: float) -> str:
    own, best = m.own(candidate, speed), m.best_rival(speed)
    if own is None:
        return "-"
    figures = f"{own.mean:.1f} / {own.tenth:.1f} / {own.worst:.1f}"
    return figures if best is None else f"{figures} ({own.mean - best[1].mean:+.1f}, {METHODS[best[0]].title})"


def by_threshold(rows: Sequence[Row]) -> dict[float, list[tuple[float, float]]]:
    """Threshold -> (mean PSNR in dB, speedup) of each model and step count, with SpeCa as it is shipped."""
    shipped = defaults().name
    found: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        if row["method"] == "speca" and candidate_of(row) == shipped:
            threshold = float(row["label"].rpartition(" threshold ")[2])
            found.setdefault(threshold, []).append((float(row["psnr_mean"]), float(row["speedup"])))
    return dict(sorted(found.items()))


def _thresholds(at_thresholds: Mapping[float, Sequence[tuple[float, float]]]) -> str:
    """What a threshold asks for, whatever the model."""
    lines = []
    for threshold, at in at_thresholds.items():
        quality, speed = zip(*at, strict=True)
        ends = f"{min(quality):.1f} to {max(quality):.1f}", f"{min(speed):.1f}x to {max(speed):.1f}x"
        lines.append([f"{threshold:g}", f"{fmean(quality):.1f}", f"{pstdev(quality):.1f}", *ends])
    said = "What a threshold means: SpeCa's mean PSNR in dB over all of these models and step counts, and its speed."
    return table(said, ["threshold", "PSNR", "standard deviation", "lowest to highest", "speed"], lines)


def _worth_of_checks(measured: Mapping[Where, Measured], chosen: Mapping[str, str]) -> str:
    """SpeCa against its own forecast and last block with nothing checked, at a fixed interval or at a plan."""
    rows = []
    for (model, steps), m in measured.items():
        cells = []
        for speed in SHOWN:
            own, unchecked = m.own(chosen[model], speed), best_of(m.unchecked, speed)
            cells.append(f"{own.mean - unchecked[1].mean:+.1f}" if own and unchecked else "-")
        rows.append([model, f"{steps}", *cells])
    said = "What the checks are worth: dB above SpeCa's own forecast without them, at a fixed interval or a plan."
    return table(said, ["left out", "steps", *(f"{speed:g}x" for speed in SHOWN)], rows)


def _choices(measured: Mapping[Where, Measured], chosen: Mapping[str, str]) -> str:
    """And what SpeCa as it is shipped would have come to, where something else was chosen."""
    shipped = defaults().name
    rows = []
    for model, candidate in chosen.items():
        here = measured.get((model, README_STEPS))
        otherwise = here is not None and candidate != shipped and shipped in here.candidates
        margins = [here.margin(shipped, speed) for speed in SHOWN] if here is not None and otherwise else []
        rows.append([model, candidate, " / ".join("-" if each is None else f"{each[0]:+.1f}" for each in margins)])
    said = "What was chosen on the others:"
    at = " / ".join(f"{speed:g}x" for speed in SHOWN)
    return table(
        said, ["left out", "chosen", f"as shipped, dB over the best rival at {at} of {README_STEPS} steps"], rows
    )


def _other_choices(measured: Mapping[Where, Measured], chosen: Mapping[str, str]) -> str:
    """What was chosen most often against every other candidate, where both are that fast; "" without another."""
    usual = mode(chosen.values())
    lines = []
    for other in sorted({name for m in measured.values() for name in m.candidates} - {usual}):
        for steps in sorted({steps for _, steps in measured}):
            cells = []
            for speed in SHOWN:
                both = [
                    (at_least(m.candidates[usual], speed), at_least(m.candidates[other], speed))
                    for (_, n), m in measured.items()
                    if n == steps and usual in m.candidates and other in m.candidates
                ]
                less = [(b.mean - a.mean, b.worst - a.worst) for a, b in both if a and b]
                cells.append(" / ".join(f"{fmean(each):+.1f}" for each in zip(*less, strict=True)) or "-")
            if any(cell != "-" for cell in cells):
                lines.append([other, f"{steps}", *cells])
    if not lines:
        return ""
    said = f"What another choice is worth: dB above `{usual}`, means over the models, of the mean / the worst sample."
    return table(said, ["instead", "steps", *(f"{speed:g}x" for speed in SHOWN)], lines)


def _with_noise(measured: Mapping[Where, Measured]) -> str:
    """What acts only where the sampler adds noise, chosen and scored by itself; "" with fewer than two models."""
    if len(measured) < 2:
        return ""
    chosen = {model: choose(measured, model, defaults().name) for model, _ in measured}
    said = (
        f"With {NOISY}, {CHOSEN_AT} steps: what acts only where the sampler adds noise, chosen on the others. PSNR as"
        " above, and in brackets how far the mean is above fewer steps."
    )
    head = ["left out", "chosen", *(f"{speed:g}x" for speed in SHOWN)]
    return (
        table(
            said,
            head,
            [
                [model, chosen[model], *(_cell(m, chosen[model], s) for s in SHOWN)]
                for (model, _), m in measured.items()
            ],
        )
        + "\n\n"
        + _other_choices(measured, chosen)
    )


def _goals(measured: Mapping[Where, Measured], chosen: Mapping[str, str]) -> str:
    """A line per place and speed that misses its goal, and by how much."""
    missed = []
    for (model, steps), m in measured.items():
        for speed in SHOWN:
            margin = m.margin(chosen[model], speed)
            if margin is None:
                continue
            goal = 3.0 if speed <= 4 and steps >= 28 else 0.0
            if margin[0] < goal:
                missed.append(f"- {model}, {steps} steps, {speed:g}x: {margin[0]:+.1f} dB, the goal is {goal:+.0f}")
            if goal and margin[1] < 0:
                missed.append(f"- {model}, {steps} steps, {speed:g}x: worst sample {margin[1]:+.1f} dB below the best")
    return "\n".join(["Goals missed:", "", *(missed or ["none"])])


def plot(measured: Mapping[Where, Measured], chosen: Mapping[str, str], path: Path) -> None:
    """A panel per model at `README_STEPS`: SpeCa as chosen on the others, the best rival at each speed, fewer steps."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = [(model, m) for (model, steps), m in measured.items() if steps == README_STEPS]
    if not places:
        return
    columns = min((4, 3), key=lambda n: -len(places) % n)  # fewest holes
    columns = min(columns, len(places))
    rows = -(-len(places) // columns)
    figure, axes = pyplot.subplots(
        rows,
        columns,
        figsize=(max(3.1 * columns, 5.5), 2.6 * max(rows, 1.3)),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    speeds = [1.5 + 0.1 * i for i in range(46)]
    handles = {}
    for axis, (model, m) in zip(axes.flat, places, strict=False):
        own = [(s, q) for s in speeds if (q := m.own(chosen[model], s))]
        best = [(s, b[1].mean) for s in speeds if (b := m.best_rival(s))]
        fewer = [(s, q.mean) for s in speeds if (q := at_least(m.rivals.get("fewer_steps", ()), s))]
        curves = (
            ("SpeCa, mean", [(s, q.mean) for s, q in own], {"color": "black", "linewidth": 2.2}),
            ("SpeCa, worst sample", [(s, q.worst) for s, q in own], {"color": "black", "linestyle": ":"}),
            ("best rival at each speed, mean", best, {"color": "tab:red"}),
            ("fewer steps, mean", fewer, {"color": "tab:gray", "linestyle": "--"}),
        )
        for label, points, style in curves:
            if points:
                (handles[label],) = axis.plot(*zip(*points, strict=True), **style)
        axis.set_title(model, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(places) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(len(places) - columns, 0) : len(places)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel("speedup computed for the real model's depth; PSNR against the uncached picture", fontsize=8)
    figure.supylabel("PSNR, dB", fontsize=8)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=4 if columns > 2 else 2, fontsize=8
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
