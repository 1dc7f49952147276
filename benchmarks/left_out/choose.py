"""The choice: which candidate is best on all models but one, and what it is worth on that one. Pure.

A candidate is chosen by its mean margin over the best rival, over the other models, step counts and `SPEEDS`; of those
within `TIE` of the best, the defaults if they are among them, else the one whose worst samples are best. It is done at
the step counts at which all are measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from measure.curve import Point, at_least, frontier

SPEEDS = (2.0, 3.0, 4.0)
"""At which candidates are compared."""
SHOWN = (2.0, 3.0, 4.0, 5.0)
TIE = 0.1
NOT_REACHED = -10.0
"""The margin, in dB, of a candidate at a speed that it does not reach."""

Row = Mapping[str, str]
Where = tuple[str, int]
"""A model and a number of steps."""


def curve_of(rows: Iterable[Row]) -> list[Point]:
    columns = ("speedup", "psnr_mean", "psnr_p10", "psnr_worst")
    return frontier(Point(*(float(row[name]) for name in columns)) for row in rows)


def best_of(curves: Mapping[str, Sequence[Point]], speed: float) -> tuple[str, Point] | None:
    """The method whose mean is highest at a speed, of those that are that fast."""
    reached = [(name, quality) for name, curve in curves.items() if (quality := at_least(curve, speed))]
    return max(reached, key=lambda pair: pair[1].mean, default=None)


@dataclass(frozen=True)
class Measured:
    """All curves at one place: rivals by method, candidates by name, and SpeCa's forecast without its checks."""

    rivals: Mapping[str, Sequence[Point]]
    candidates: Mapping[str, Sequence[Point]]
    unchecked: Mapping[str, Sequence[Point]]

    def best_rival(self, speed: float) -> tuple[str, Point] | None:
        """By its mean."""
        return best_of(self.rivals, speed)

    def best_worst(self, speed: float) -> float | None:
        """The best of all rivals' worst samples."""
        return max((q.worst for curve in self.rivals.values() if (q := at_least(curve, speed))), default=None)

    def own(self, candidate: str, speed: float) -> Point | None:
        """A candidate's quality; None where it is not that fast, or was not measured."""
        return at_least(self.candidates.get(candidate, ()), speed)

    def margin(self, candidate: str, speed: float) -> tuple[float, float] | None:
        """dB over the best rival: of the mean, of the worst sample. None where no rival is that fast, or where the
        candidate was not measured."""
        best, worst = self.best_rival(speed), self.best_worst(speed)
        if best is None or worst is None or candidate not in self.candidates:
            return None
        own = self.own(candidate, speed)
        return (NOT_REACHED, NOT_REACHED) if own is None else (own.mean - best[1].mean, own.worst - worst)


def of_sampler(rows: Iterable[Row], sampler: str = "euler") -> list[Row]:
    return [row for row in rows if row["sampler"] == sampler]


def gather(rows: Iterable[Row], unchecked: Sequence[str]) -> dict[Where, Measured]:
    """Rows of one sampler by place. A candidate's are of the method "speca", named by what it does not share with its
    others; `unchecked` are the methods that are SpeCa without its checks."""
    found: dict[Where, tuple[dict[str, list[Row]], ...]] = {}
    for row in rows:
        rivals, candidates, own = found.setdefault((row["model"], int(row["steps"])), ({}, {}, {}))
        if row["method"] == "speca":
            candidates.setdefault(candidate_of(row), []).append(row)
        else:
            (own if row["method"] in unchecked else rivals).setdefault(row["method"], []).append(row)
    return {
        where: Measured(*({name: curve_of(r) for name, r in by_name.items()} for by_name in kinds))
        for where, kinds in found.items()
    }


def beyond_sight(rows: Sequence[Row]) -> set[tuple[str, ...]]:
    """(model, steps, family, label) of the settings that say nothing of the speeds `SHOWN`: slower than the last point
    of their method's, or candidate's, curve before the first of these, or faster than the second one after the last
    (fewer samples may find the first one slower)."""
    by_curve: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_curve.setdefault((row["model"], row["steps"], row["method"], candidate_of(row)), []).append(row)
    beyond = set()
    for (model, steps, _, _), of_curve in by_curve.items():
        speeds = [point.speed for point in curve_of(of_curve)]
        slowest = max((s for s in speeds if s <= SHOWN[0]), default=0.0)
        faster = [s for s in speeds if s >= SHOWN[-1]]  # slowest first
        fastest = faster[1] if len(faster) > 1 else math.inf
        beyond |= {
            (model, steps, row["family"], row["label"])
            for row in of_curve
            if not slowest <= float(row["speedup"]) <= fastest
        }
    return beyond


def candidate_of(row: Row) -> str:
    return row["label"].rpartition(" threshold ")[0]


def choose(measured: Mapping[Where, Measured], left_out: str, defaults: str) -> str:
    """The candidate for a model, chosen on all others. Raises ValueError where there are no others."""
    others = [m for (model, _), m in measured.items() if model != left_out]
    if not others:
        raise ValueError(f"there is no other model than {left_out} to choose on")
    names: set[str] = set().union(*(m.candidates for m in others))
    others = [m for m in others if names <= set(m.candidates)]
    scores = {}
    for name in sorted(names):
        margins = [margin for m in others for speed in SPEEDS if (margin := m.margin(name, speed)) is not None]
        if margins:
            scores[name] = tuple(sum(column) / len(margins) for column in zip(*margins, strict=True))
    best = max(score[0] for score in scores.values())
    tied = [name for name, score in scores.items() if score[0] >= best - TIE]
    return defaults if defaults in tied else max(tied, key=lambda name: scores[name][1])
