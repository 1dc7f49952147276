"""A table as Markdown, under its caption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([caption, "", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))])
