"""The README's table of models, rendered from `ARCHITECTURES`.

    python -c "from speca.adapters.table import render; print(render())"

needs ComfyUI importable, as everything in `adapters` does.
"""

from __future__ import annotations

from collections.abc import Iterable

from .base import Architecture

BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"


def render(architectures: Iterable[Architecture] | None = None) -> str:
    """Markdown, without a line's end after the last row; of all architectures unless some are given."""
    if architectures is None:
        from . import ARCHITECTURES

        architectures = ARCHITECTURES
    rows = ["| Architecture | Models | Tested |", "| --- | --- | --- |"]
    for architecture in architectures:
        tested = f"no: {architecture.untested}" if architecture.untested else "yes"
        rows.append(f"| {architecture.title} | {', '.join(architecture.models)} | {tested} |")
    rows.append(
        "| any other transformer | with one or two lists of equal blocks; tried out on the model's first call, "
        "left alone if the trial fails | experimental |"
    )
    return "\n".join(rows)


def replaced(text: str) -> str:
    """`text` with what stands between its markers replaced by the table. Raises `ValueError` without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"
