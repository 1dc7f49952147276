"""A recorded run, and other settings tried on what was recorded: what a full call would compute is looked up.

Recorded of every evaluation of the sampler are its latent and the picture it was told, of every call of the network the
features that enter the last block and the output. A replay asks the same questions again: forecasts and the last block
are run, full calls are not. It does not know how an error moves the latent, for each question is the recorded one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .budget import Prices
from .call import Call, Exact, Network, Tensors
from .events import Row, RunRecord
from .session import Session

GIGABYTE = 1e9


class RecordingTooLargeError(MemoryError):
    """The recording would need more system memory than it may have. The message says how much, and what to do."""


class NotAsRecordedError(Exception):
    """A replay asked for another call than the one that was recorded in its place."""


class Recordable(Network, Protocol):
    """A network that can say by itself what enters its last block when all blocks are skipped, (B, ...) per tensor."""

    def embedded(self) -> Tensors | None: ...


@dataclass(frozen=True)
class RecordedCall:
    """What a full call computed, in system memory, and the seconds that it took."""

    streams: tuple[Hashable, ...]
    exact: Exact
    seconds: float


@dataclass
class Round:
    """One evaluation by the sampler: the latent x, (B, ...), the sigma it asked for, (B,), and what it was told."""

    x: Tensor
    sigma: Tensor
    denoised: Tensor | None = None
    calls: list[RecordedCall] = field(default_factory=list)


class Recording:
    """The evaluations of one run, at most `limit` bytes of them. steps: of its schedule, to foresee what it will take.

    seconds: spent on keeping it; the run's clock stands still meanwhile.
    """

    def __init__(self, limit: float, steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.rounds: list[Round] = []
        self.nbytes = 0
        self.seconds = 0.0
        self._limit = limit
        self._steps = steps
        self._clock = clock

    def run_clock(self) -> float:
        """Seconds without those that keeping took."""
        return self._clock() - self.seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in here is not the run's own work."""
        began = self._clock()
        try:
            yield
        finally:
            self.seconds += self._clock() - began

    def begin_round(self, x: Tensor, sigma: Tensor) -> None:
        with self.aside():
            self.rounds.append(Round(self._kept(x), self._kept(sigma)))

    def end_round(self, denoised: Tensor) -> None:
        """Raises `RecordingTooLargeError` after the first, if as many as there are steps will not fit."""
        with self.aside():
            self.rounds[-1].denoised = self._kept(denoised)
        if len(self.rounds) == 1:
            self._must_fit(self.nbytes * self._steps)

    def add(self, call: Call, exact: Exact, seconds: float) -> None:
        with self.aside():
            features = exact.features and tuple(map(self._kept, exact.features))
            embedded = exact.embedded and tuple(map(self._kept, exact.embedded))
            kept = Exact(features, tuple(map(self._kept, exact.output)), embedded)
            self.rounds[-1].calls.append(RecordedCall(call.streams, kept, seconds))

    def _kept(self, tensor: Tensor) -> Tensor:
        nbytes = tensor.numel() * tensor.element_size()
        self._must_fit(self.nbytes + nbytes)
        self.nbytes += nbytes
        return tensor.detach().to("cpu", copy=True)

    def _must_fit(self, nbytes: float) -> None:
        if nbytes > self._limit:
            raise RecordingTooLargeError(
                f"the recorded features of this run take at least {nbytes / GIGABYTE:.1f} GB of system memory, more "
                f"than the {self._limit / GIGABYTE:.1f} GB allowed. Tune on fewer steps, a smaller size, fewer frames "
                "or a smaller batch, or raise memory_limit_gb"
            )


class RecordingSession(Session):
    """Computes every call, and records it."""

    recording: Recording

    def evaluate(self, call: Call, network: Recordable) -> Tensors:  # type: ignore[override]
        began = self._clock()
        needs_embedded = any(stream.needs_embedded for stream in self.streams.of(call))
        exact = network.full(None, True)
        seconds = self._clock() - began
        recorded = exact
        if needs_embedded and exact.features is not None:
            with self.recording.aside():
                embedded = network.embedded()
            if embedded is not None and [t.shape for t in embedded] == [t.shape for t in exact.features]:
                recorded = replace(exact, embedded=embedded)
        self.recording.add(call, recorded, seconds)
        rows = {sample: Row(sample, "full", "threshold_zero") for sample in range(call.n_samples)}
        self.tally.count(call, rows, began, self._clock(), seconds, 0)
        return exact.output


class ReplaySession(Session):
    """Decides as any session does. What full calls compute comes from the recording, one round after the other."""

    latents_stray = False

    def replay(self, recording: Recording) -> Iterator[Round]:
        """Its rounds, each to be asked again before the next one is taken."""
        for recorded in recording.rounds:
            self._left = iter(recorded.calls)
            yield recorded

    def evaluate(self, call: Call, network: Network) -> Tensors:
        recorded = next(self._left, None)
        if recorded is None or recorded.streams != call.streams:
            raise NotAsRecordedError(f"step {call.step + 1}: another call than the recorded one")
        return super().evaluate(call, RecordedNetwork(network, recorded.exact))


class RecordedNetwork:
    """`Network` whose full calls are those recorded; `speculate` is the network's own."""

    def __init__(self, network: Network, exact: Exact) -> None:
        self.splittable = network.splittable
        self.device = network.device
        self.speculate = network.speculate
        self._exact = exact

    def full(self, rows: Sequence[int] | None, keep_features: bool, keep_embedded: bool = False) -> Exact:
        """Copies, for the session works on them in place."""

        def picked(tensors: Tensors | None) -> Tensors | None:
            if tensors is None:
                return None
            of_rows = tensors if rows is None else tuple(t[list(rows)] for t in tensors)
            return tuple(t.to(self.device, copy=rows is None) for t in of_rows)

        exact = self._exact
        output = picked(exact.output)
        assert output is not None
        features = picked(exact.features) if keep_features else None
        return Exact(features, output, picked(exact.embedded) if features and keep_embedded else None)


def prices(recording: Recording, seconds: float, replays: Sequence[RunRecord]) -> Prices:
    """Medians: a machine does other things too. seconds: of the recorded run, by its clock."""
    full = [call.seconds for each in recording.rounds for call in each.calls]
    checks = [
        (call.ms - call.full_ms) / 1000
        for record in replays
        for call in record.calls
        if any(row.error is not None for row in call.rows)
    ]
    check = statistics.median(checks) if checks else 0.0
    return Prices(statistics.median(full), check, max(seconds - sum(full), 0.0) / len(full))


def seconds_of(record: RunRecord, price: Prices) -> float:
    """Of a run with these decisions. A part of a batch costs its share of a full call."""
    return sum(
        price.outside
        + price.full * sum(row.outcome != "accepted" for row in call.rows) / len(call.rows)
        + price.check * any(row.error is not None for row in call.rows)
        for call in record.calls
    )


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """A copy there, which whoever is given it may work on in place."""
    return tensor.to(device, copy=True)
