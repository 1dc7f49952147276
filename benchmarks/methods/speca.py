"""SpeCa as built here."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from measure.quality import Cost
from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from .base import Method, Run, Setting

THRESHOLDS = (
    *(0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.10, 0.14),
    *(0.20, 0.24, 0.28, 0.34, 0.40, 0.56, 0.80, 1.60, 3.20),
)
SHORT_THRESHOLDS = (0.005, 0.02, 0.05, 0.10, 0.14, 0.20, 0.24, 0.28, 0.34, 0.40, 0.56, 0.80, 1.60, 3.20)


@dataclass(frozen=True)
class SpeCa:
    """SpeCa as built here. `settings` are fields of `SpeCaConfig` that differ from its defaults, `constants` those of
    its modules, by their whole names, that differ from what they are."""

    settings: tuple[tuple[str, Any], ...] = ()
    family: str = "SpeCa"
    one_by_one: bool = False
    constants: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        named = [*((name.rpartition(".")[2], value) for name, value in self.constants), *self.settings]
        return " ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in named)

    def fits(self, case: Case) -> bool:
        return True

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        from speca.comfyui.attach import attach, attachment_of
        from speca.config import SpeCaConfig

        patched = attach(subject.patcher, SpeCaConfig(**dict(self.settings)))
        with ExitStack() as changed:
            for name, value in self.constants:
                changed.enter_context(patch(name, value))
            result = sample(patched, subject, case, batch)
        record = attachment_of(patched).run_of()
        assert record is not None
        if record.header.native is not None:
            return Run(result.latents, [Cost(native, native)] * len(batch), result.seconds)
        unit = native / max(record.totals.calls, 1)
        counts = [Counter() for _ in range(len(batch))]
        for call in record.calls:
            for row in call.rows:
                counts[row.sample][row.outcome] += 1
        costs = [
            Cost(native, c["full"] * unit, c["accepted"] * unit, c["rejected"] * unit, c["trusted"] * unit)
            for c in counts
        ]
        return Run(result.latents, costs, result.seconds, record.totals.cache_bytes // len(batch))


def settings(short: bool) -> list[Setting]:
    """Over the threshold, everything else as `SpeCaConfig` has it."""
    return [SpeCa((("threshold", value),)) for value in (SHORT_THRESHOLDS if short else THRESHOLDS)]


METHODS = (Method("speca", "SpeCa", settings),)
