"""Tables that `python dev.py test --full` prints and keeps in `benchmarks/results`, row by row.

A row that is made again takes the place of the old one, so a table may be made in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


class Table:
    """`name`.md: `said` above it, `head` its columns, of which the first `keys` name a row."""

    def __init__(self, name: str, said: str, head: Sequence[str], keys: int = 2, folder: Path = RESULTS) -> None:
        self._file = folder / f"{name}.md"
        self._said = said
        self._head = tuple(head)
        self._keys = keys

    def rows(self) -> dict[tuple[str, ...], tuple[str, ...]]:
        """Those that are kept, by their first cells."""
        if not self._file.is_file():
            return {}
        lines = [line for line in self._file.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]
        return {row[: self._keys]: row for row in cells}

    def keep(self, *cells: object) -> None:
        row = tuple(f"{cell:.2f}" if isinstance(cell, float) else str(cell).replace("|", "/") for cell in cells)
        assert len(row) == len(self._head)
        rows = self.rows() | {row[: self._keys]: row}
        lines = [self._said, "", _line(self._head), _line(["---"] * len(self._head)), *map(_line, rows.values())]
        self._file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(_line(row))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
