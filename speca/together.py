"""The conditionings of one sample belong together, also where they come in calls of their own. Pure.

Guidance takes the difference of two conditionings several times over. Errors of forecasts that rest on the same
computed steps are nearly alike, and cancel in it; those of forecasts from different steps do not. ComfyUI asks for all
conditionings in one call where memory and their shapes allow (`comfy/samplers.py`, `calc_cond_batch`), and else for one
after the other. So within an evaluation of the sampler, what was computed for one conditioning is computed for those
that follow; and where one was thrown away after another was accepted, all are computed in the next evaluation. And a
sample is as wrong as its worst conditioning, as in one call: what a check found of one counts for those that follow.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from .call import Call
from .policy import Decision


@dataclass
class Evaluation:
    """What became of the streams of one sample at one time: stream -> computed. parted: not alike the time before.
    error: the largest that a check has found."""

    made: dict[Hashable, bool] = field(default_factory=dict)
    parted: bool = False
    time: float | None = None
    error: float = 0.0

    def begin(self, streams: Sequence[Hashable], time: float) -> None:
        """These are called now: in a new evaluation if it is at another time, or if one of them was called before."""
        if time != self.time or any(stream in self.made for stream in streams):
            self.time = time
            self.parted = len(set(self.made.values())) > 1
            self.made = {}
            self.error = 0.0

    @property
    def computes(self) -> bool:
        return self.parted or any(self.made.values())


class Together:
    """Of one run: the evaluation at hand, by sample and part of the picture.

    Calls from other threads than the sampler's go alone: with a device for each conditioning it is chance which is
    first, and a picture would not repeat.
    """

    def __init__(self) -> None:
        self._of: defaultdict[Hashable, Evaluation] = defaultdict(Evaluation)
        self._thread = threading.get_ident()

    def decide(self, call: Call, decisions: Sequence[Decision], splittable: bool) -> list[Decision]:
        """`decisions`, one per sample, less the forecasts that would part a sample's conditionings."""
        if not self._follows(call):
            return list(decisions)
        computes = []
        for sample in range(call.n_samples):
            evaluation = self._of[call.part, sample]
            evaluation.begin(_streams(call, sample), call.time)
            computes.append(evaluation.computes)
        if not splittable and any(computes):
            computes = [True] * len(computes)
        with_others = Decision("full", "with_conditioning")
        return [with_others if c and d.action != "full" else d for c, d in zip(computes, decisions, strict=True)]

    def apart(self, call: Call, computed: Sequence[int]) -> list[int]:
        """The samples that are `computed` in this call while another conditioning is not, or was not last time. Nothing
        may be put right for them: the other's anchors would not know that the latent was moved."""
        if not self._follows(call):
            return []
        of = {sample: self._of[call.part, sample] for sample in computed}
        return [sample for sample, each in of.items() if each.parted or not all(each.made.values())]

    def error(self, call: Call, sample: int, found: float) -> float:
        """The sample's, where a check of this call has `found` so much: that, or more if another has found more."""
        if not self._follows(call) or not math.isfinite(found):
            return found
        evaluation = self._of[call.part, sample]
        evaluation.error = max(evaluation.error, found)
        return evaluation.error

    def made(self, call: Call, computed: Sequence[bool]) -> None:
        """What became of each sample of the call."""
        if self._follows(call):
            for sample, each in enumerate(computed):
                self._of[call.part, sample].made |= dict.fromkeys(_streams(call, sample), each)

    def _follows(self, call: Call) -> bool:
        return call.part is not None and threading.get_ident() == self._thread


def _streams(call: Call, sample: int) -> list[Hashable]:
    return [call.streams[row] for row in call.rows_of([sample])]
