"""Which threshold applies at a call: the settings' own, or the one at which the run's time lasts."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Hashable, Sequence

from .budget import FIRST_RATE, MADE_UP, TOLERANCE, Forecasts, affordable, haste, threshold_for
from .call import Call
from .config import SpeCaConfig
from .events import Plan, RunHeader
from .stream import Stream
from .tally import Tally
from .verify import growth, threshold_at


class Pace:
    """Of one run. It keeps nothing but how often the sampler calls in a step. Thread-safe."""

    def __init__(self, config: SpeCaConfig, header: RunHeader) -> None:
        self._config = config
        self._steps = header.steps
        self._by_step: Counter[tuple[int, Hashable]] = Counter()
        self._lock = threading.Lock()

    def made(self, call: Call) -> None:
        with self._lock:
            self._by_step[call.step, call.streams[0]] += 1

    def threshold(
        self, call: Call, streams: Sequence[Stream], splittable: bool, tally: Tally
    ) -> tuple[float, Plan | None]:
        """That of `call`, whose rows have `streams`; and in speed mode the plan that it follows from."""
        config = self._config
        if config.speed is None:
            return threshold_at(call.progress, config.threshold, config.threshold_end_factor), None
        own, all_calls = self._calls_left(call)
        samples = [self._forecasts(call, [streams[r] for r in call.rows_of([s])], own) for s in range(call.n_samples)]
        allowance = tally.allowance(config.speed, all_calls)
        left = max(allowance.left, allowance.usually_left - MADE_UP * allowance.seconds)
        computed = affordable(tally.prices(), left + TOLERANCE * allowance.seconds, all_calls)
        threshold = threshold_for(samples, computed * own / all_calls, together=not splittable)
        ahead = sorted(set().union(*(sample.computed(threshold) for sample in samples)) - {0})
        return threshold, Plan(all_calls - 1, computed, tuple(ahead))

    def _calls_left(self, call: Call) -> tuple[int, int]:
        """(of this call's streams, of all), this one included, if the sampler goes on as in the last whole step."""
        key, step = call.streams[0], call.step
        with self._lock:
            by_step = Counter(self._by_step)
        whole = {s: n for (s, k), n in by_step.items() if k == key and s < step}
        made = by_step[step, key]
        per_step = max(whole[max(whole)] if whole else 1, made + 1)
        own = max((self._steps - step) * per_step - made, 1)
        streams = len({k for _, k in by_step} | {key})
        return own, own * streams

    def _forecasts(self, call: Call, streams: Sequence[Stream], own: int) -> Forecasts:
        """Of one sample, by the streams of all its rows."""
        config = self._config
        left = max(self._steps - call.step, 1)
        steps = [step for step in range(call.step, call.step + left) for _ in range(math.ceil(own / left))][-own:]
        weights = [streams[0].weight_at(call, step) for step in steps]
        for i in range(len(weights)):
            progress = call.progress + (1 - call.progress) * i / len(weights)
            if not config.start_percent <= progress <= config.end_percent:
                weights[i] = math.inf
        return Forecasts(
            total=max(stream.errors.total for stream in streams),
            in_a_row=max(stream.in_a_row for stream in streams),
            rate=max(stream.rate or FIRST_RATE for stream in streams),
            growth=growth(call.renoised) if config.accumulate_error else 0.0,
            weights=tuple(weights),
            hastes=tuple(haste(call.schedule.picture_gain(step)) for step in steps),
            longest=config.max_consecutive,
        )
