"""A recorded run, and other settings tried on what was recorded: what a full call would compute is looked up.

Recorded of every call of the network are its latent, the features that enter the last block and the output. A replay
is a run of the same sampler in which forecasts and the last block are run, and full calls are not: they give what was
recorded, moved as far as the latent has strayed. So decisions, what the sampler makes of errors and what computed calls
put right are those of a run; what is only estimated is how the network would answer another latent.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .budget import Prices
from .call import Call, Exact, Network, Tensors
from .clock import RunClock
from .corrector import Astray, seen_from
from .events import Row, RunRecord
from .history import Anchor
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
    """What a full call computed from the latent `x`, (B, ...), in system memory, and the seconds that it took."""

    sigma: float
    streams: tuple[Hashable, ...]
    x: Tensor | None
    exact: Exact
    seconds: float


class Recording:
    """The calls of one run, at most `limit` bytes of them. steps: of its schedule, to foresee what it will take.

    clock: the run's own, which stands still for keeping them.
    """

    def __init__(self, limit: float, steps: int, clock: RunClock) -> None:
        self.calls: list[RecordedCall] = []
        self.nbytes = 0
        self._embedded = 0
        self.clock = clock
        self._limit = limit
        self._steps = steps

    def add(self, call: Call, exact: Exact, seconds: float) -> None:
        """Raises `RecordingTooLargeError` in the first step, if as many as there are steps will not fit."""
        with self.clock.stopped():
            x = None if call.latent is None else self._kept(call.latent.x)
            features = exact.features and tuple(map(self._kept, exact.features))
            embedded = exact.embedded and tuple(map(self._kept, exact.embedded))
            kept = Exact(features, tuple(map(self._kept, exact.output)), embedded)
            self.calls.append(RecordedCall(call.sigma, call.streams, x, kept, seconds))
        self._embedded += sum(t.numel() * t.element_size() for t in kept.embedded or ())
        if call.step == 0:
            self._must_fit(self._embedded + (self.nbytes - self._embedded) * self._steps)

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
        streams = self.streams.of(call)
        needs_embedded = any(stream.needs_embedded(call) for stream in streams)
        exact = network.full(None, True)
        seconds = self._clock() - began
        recorded = exact
        if needs_embedded and exact.features is not None:
            with self.recording.clock.stopped():
                embedded = network.embedded()
            if embedded is not None and [t.shape for t in embedded] == [t.shape for t in exact.features]:
                recorded = replace(exact, embedded=embedded)
        self.recording.add(call, recorded, seconds)
        for stream in streams:  # which calls come after another, as a replay's anchors do
            stream.history.record(Anchor(call.time, (), ()))
        rows = {sample: Row(sample, "full", "threshold_zero") for sample in range(call.n_samples)}
        self.tally.count(call, rows, began, self._clock(), seconds, 0)
        return exact.output


class ReplaySession(Session):
    """Decides as any session does. What full calls compute follows from the recorded ones."""

    recorded: Iterator[RecordedCall]

    def evaluate(self, call: Call, network: Network) -> Tensors:
        recorded = next(self.recorded, None)
        if recorded is None or (recorded.streams, recorded.sigma) != (call.streams, call.sigma):
            raise NotAsRecordedError(f"step {call.step + 1}: another call than the recorded one")
        return super().evaluate(call, RecordedNetwork(network, _from(call, recorded)))


def _from(call: Call, recorded: RecordedCall) -> Exact:
    """What a full call would compute from this call's latent, which strayed from the recorded one.

    Its picture follows the latent as `corrector.Astray` has it. How features would differ is not known: they stay the
    recorded ones.
    """
    exact, level = recorded.exact, call.level
    if call.latent is None or level is None or recorded.x is None or exact.output[0].shape != recorded.x.shape:
        return exact
    there = call.latent.x.to("cpu", torch.float32)
    rows = zip(recorded.x.float().split(1), exact.output[0].split(1), there.split(1), strict=True)
    moved = [seen_from(level, output, Astray.of(level, x, output, to - x)) for x, output, to in rows]
    return replace(exact, output=(torch.cat(moved), *exact.output[1:]))


class RecordedNetwork:
    """`Network` whose full calls give `exact`; `speculate` is the network's own."""

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
    full = [call.seconds for call in recording.calls]
    checks = [
        (call.ms - call.full_ms) / 1000
        for record in replays
        for call in record.calls
        if any(row.checked for row in call.rows)
    ]
    check = statistics.median(checks) if checks else 0.0
    return Prices(statistics.median(full), check, max(seconds - sum(full), 0.0) / len(full))


def seconds_of(record: RunRecord, price: Prices) -> float:
    """Of a run with these decisions. A part of a batch costs its share of a full call."""
    return sum(
        price.outside
        + price.full * sum(not row.skipped for row in call.rows) / len(call.rows)
        + price.check * any(row.checked for row in call.rows)
        for call in record.calls
    )
