"""SpeCa as its released code does it (Cache4Diffusion, `speca-flux`): an error decides about the *next* call.

Nothing is rejected: a forecast that turns out wrong has gone to the sampler already.
"""

from __future__ import annotations

from dataclasses import dataclass

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject

from . import forecasting
from .base import Method, Run, Setting
from .forecasting import Decision


@dataclass
class ReleasedSpeCa:
    """`cal_type` of the released code: the last checked error decides about the *next* call; nothing is rejected.

    The call after a full one is always forecast (also inside the warm-up) and never checked; from the `shortest`-th
    forecast on each is checked; after `longest` forecasts a call is computed. Threshold: base * decay^progress,
    not under `floor`.
    """

    base: float
    decay: float
    shortest: int
    longest: int
    floor: float = 0.1
    first_full: int = 3
    _last: str = ""
    _count: int = 0
    _error: float | None = None

    def decide(self, call: int, n_calls: int) -> Decision:
        if self._last == "full":
            self._last, self._count, self._error = "forecast", 1, None
            return "forecast"
        threshold = max(self.base * self.decay ** (call / n_calls), self.floor)
        check = self._count >= self.shortest
        too_large = self._error is not None and self._error > threshold
        if call < self.first_full or self._count >= self.longest or (too_large and check):
            self._last, self._count = "full", 0
            return "full"
        self._last = "forecast"
        self._count += 1
        return "checked" if check else "forecast"

    def observe(self, error: float) -> None:
        self._error = error


@dataclass(frozen=True)
class Released:
    """The released SpeCa code's rule over every module's output; its other parameters are the published ones."""

    base: float
    decay: float
    shortest: int
    longest: int
    order: int
    floor: float = 0.1
    one_by_one: bool = True

    @property
    def family(self) -> str:
        return "released SpeCa"

    @property
    def label(self) -> str:
        return f"base {self.base:g} decay {self.decay:g} {self.shortest}-{self.longest} O{self.order}"

    def fits(self, case: Case) -> bool:
        return case.steps > self.shortest + 3

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        def rule() -> ReleasedSpeCa:
            return ReleasedSpeCa(self.base, self.decay, self.shortest, self.longest, self.floor)

        patched, log = forecasting.attach(subject.patcher, "modules", rule, self.order, n_calls=native)
        return forecasting.run_of(sample(patched, subject, case, batch), log, native)


def settings(short: bool) -> list[Setting]:
    """The published parameters for FLUX, HunyuanVideo and DiT, the base threshold varied around them."""
    flux = [Released(base, 0.3, 2, 8, 2) for base in ((1.0, 7.0) if short else (0.5, 1.0, 2.0, 4.0, 7.0, 10.0))]
    video = [Released(base, 0.1, 4, 12, 1) for base in ((1.0,) if short else (0.5, 1.0, 2.0))]
    published_dit = ((0.1, 0.01, 2, 5), (0.3, 0.05, 3, 8))
    dit = [Released(*parameters, 4, 0.01) for parameters in (published_dit[:1] if short else published_dit)]
    return [*flux, *video, *dit]


METHODS = (Method("released", "SpeCa, released rule", settings),)
