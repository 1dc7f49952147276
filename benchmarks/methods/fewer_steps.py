"""The uncached run that everything is compared with, and the simplest rival: the same sampler with fewer steps."""

from __future__ import annotations

from dataclasses import dataclass

from measure.quality import Cost
from measure.sampling import Batch, Case, sample, with_steps
from measure.subjects import Subject

from .base import Calls, Method, Run, Setting

STEP_COUNTS = (40, 33, 30, 28, 25, 22, 20, 17, 16, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4)
SHORT_STEP_COUNTS = (25, 20, 17, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4)


@dataclass(frozen=True)
class Uncached:
    """The reference, and the same with fewer steps: `steps` None takes the case's own."""

    steps: int | None = None
    one_by_one: bool = False

    @property
    def family(self) -> str:
        return "uncached" if self.steps is None else "fewer steps"

    @property
    def label(self) -> str:
        return "" if self.steps is None else f"{self.steps} steps"

    def fits(self, case: Case) -> bool:
        return self.steps is None or self.steps < case.steps

    def run(self, subject: Subject, case: Case, batch: Batch, native: int = 0) -> Run:
        calls = Calls(subject.patcher, case, batch)
        result = sample(calls.patcher, subject, with_steps(case, self.steps or case.steps), batch)
        return Run(result.latents, [Cost(native or calls.asked, calls.asked)] * len(batch), result.seconds)


def settings(short: bool) -> list[Setting]:
    return [Uncached(steps) for steps in (SHORT_STEP_COUNTS if short else STEP_COUNTS)]


METHODS = (Method("fewer_steps", "fewer steps", settings),)
