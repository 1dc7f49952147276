"""The README's table of models, rendered from `ARCHITECTURES`.

    python -c "from speca.adapters.table import render; print(render())"

needs ComfyUI importable, as everything in `adapters` does.
"""

from __future__ import annotations

from collections.abc import Iterable

from .base import Architecture

# The newest ComfyUI that the contract suite has been run on.
NEWEST = "0.33"
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def render(architectures: Iterable[Architecture] | None = None) -> str:
    """Markdown, without a line's end after the last row; of all architectures unless some are given."""
    if architectures is None:
        from . import ARCHITECTURES

        architectures = ARCHITECTURES
    rows = ["| Architecture | Models | Tested |", "| --- | --- | --- |"]
    for architecture in architectures:
        rows.append(f"| {architecture.title} | {', '.join(architecture.models)} | {_tested(architecture)} |")
    rows.append(
        "| any other transformer | with one or two lists of equal blocks; tried out on the model's first call, "
        "left alone if the trial fails | experimental |"
    )
    return "\n".join(rows)


def _tested(architecture: Architecture) -> str:
    tested = f"no: {architecture.untested}" if architecture.untested else "yes"
    if architecture.since and not architecture.untested:
        tested = f"on ComfyUI {NEWEST}, which has it since {architecture.since}"
    if architecture.native:
        return f"runs uncached: it {architecture.native} ({architecture.untested or tested})"
    return tested


def replaced(text: str) -> str:
    """`text` with what stands between its markers replaced by the table. Raises `ValueError` without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"
