"""A run's clock, which stands still for what is not the run's own work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class RunClock:
    """Called, it gives seconds. aside: those for which it stood still.

    clock: seconds; must wait for the device.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.aside = 0.0
        self._clock = clock

    def __call__(self) -> float:
        return self._clock() - self.aside

    @contextmanager
    def stopped(self) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self.aside += self._clock() - began
