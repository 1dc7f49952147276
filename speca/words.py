"""A run in words, for the log."""

from __future__ import annotations

from collections import Counter

from .events import REASONS, Row, RunRecord, Totals


def summary_line(record: RunRecord) -> str:
    """`SpeCa: 28 calls: 11 full, 15 accepted, 2 rejected; 2.1x (measured); cache 0.17 GB`, and why, if
    nothing was skipped."""
    totals, native = record.totals, record.header.native
    ending = "" if record.status == "finished" else f" ({record.status})"
    if totals.calls == 0:
        return f"SpeCa: native, nothing skipped: {native or 'the model was not called'}{ending}"
    speed = "not measured" if totals.speedup is None else f"{totals.speedup:.1f}x (measured)"
    line = f"SpeCa: {totals.calls} calls: {counted(totals)}; {speed}; cache {size(totals.cache_bytes)}{ending}"
    if totals.accepted + totals.trusted == 0:
        line += f"; nothing skipped: {native or why_nothing_skipped(record)}"
    spending = totals.spending
    if spending is not None and spending.threshold is not None:
        line += f"; about as good as with a threshold of {spending.threshold:.2g}"
    if spending is not None and spending.missed:
        line += f"; {spending.missed}"
    return line


def counted(totals: Totals) -> str:
    """`11 full, 8 accepted, 7 trusted (not checked), 2 rejected`."""
    trusted = f", {totals.trusted} trusted (not checked)" if totals.trusted else ""
    return f"{totals.full} full, {totals.accepted} accepted{trusted}, {totals.rejected} rejected"


def size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e7 else f"{n_bytes / 1e6:.2g} MB"


def why_nothing_skipped(record: RunRecord) -> str:
    """The reasons of a run in which no forecast stands, the most frequent first, in words with their last figures."""
    counts: Counter[str] = Counter()
    latest: dict[str, Row] = {}
    for call in record.calls:
        for row in call.rows:
            counts[row.reason] += 1
            latest[row.reason] = row
    return "; ".join(f"{n}x {in_words(latest[reason])}" for reason, n in counts.most_common(3))


def in_words(row: Row) -> str:
    """The row's reason as a person reads it."""
    return REASONS[row.reason].format(**row.figures)
