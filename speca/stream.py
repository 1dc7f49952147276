"""Which trajectory a row of a call belongs to, and what is known of that trajectory.

A *stream* is one sample under one conditioning. All state that decisions rest on is per stream; a run begins with none.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from .budget import NEW_SHARE, haste
from .call import Call, Exact, Latent, Tensors
from .corrector import Astray, Corrector, seen_from
from .events import Row
from .history import Anchor, History
from .path import Seen
from .patience import Patience
from .undecided import Undecided
from .verify import ErrorSum

# A stream that was not called for so many evaluations of the sampler is forgotten: its key does not come back.
ROUNDS_KEPT = 8

Place = Callable[[Tensor], Tensor]
"""Moves a kept tensor to where anchors live."""


class Stream:
    """One stream's state.

    relative: whether the anchors' features are what the blocks added to the embedded input, which is each call's own.
    rate: the error of a first forecast, by all that were checked (`budget.Forecasts`); None while none was.
    calls: made so far. in_a_row: forecasts kept since the last full call, unchecked: since the last check. errors:
        theirs, summed.
    beside: what the last answer that was checked adds to the direct forecast, (1, C, ...) per tensor; None if there is
        none of the anchors at hand. reach: how far that lay from the newest anchor, in time.
    round: the sampler's evaluation in which it was last called. seen: that call, where only it can tell of a jump.
    """

    def __init__(self, depth: int) -> None:
        self.history = History(depth)
        self.relative = False
        self.rate: float | None = None
        self.calls = 0
        self.in_a_row = 0
        self.unchecked = 0
        self.errors = ErrorSum()
        self.beside: Tensors | None = None
        self.reach = 0.0
        self.round = 0
        self.seen: Seen | None = None
        self.undecided = Undecided()
        self.corrector = Corrector()
        self.patience = Patience()

    def start_anew(self) -> None:
        """Forget what lies behind a jump of the latent; what was learnt of the model still holds."""
        self.history.clear()
        self._begin_gap()
        self.seen = None
        self.undecided.start_anew()
        self.corrector.lose_track()

    def stays_astray(self) -> None:
        """What forecasts led astray is not put right: anchors from before them are of another path."""
        if self.in_a_row > 0:
            self.history.clear()
        self.corrector.lose_track()

    def needs_embedded(self, call: Call) -> bool:
        """Whether an anchor of `call` is kept less the embedded input, or with what the blocks added to it beside."""
        return self.relative or self._alone(call)

    @property
    def repeats_added(self) -> bool:
        """Whether a lone anchor is repeated in what its blocks added to the embedded input."""
        lone = self.history.lone
        return lone is not None and lone.added is not None

    def weight(self, call: Call) -> float:
        """What an error at `call` costs the final picture, as far as the run's pictures tell."""
        return self.weight_at(call, call.step)

    def weight_at(self, call: Call, step: int) -> float:
        """The same of another step of the run."""
        return call.schedule.weight(step, self.undecided.decided_at)

    def _alone(self, call: Call) -> bool:
        """Whether an anchor of `call` would be the only one."""
        return all(time == call.time for time in self.history.times)

    def keep_relative(self) -> None:
        """From now on: the past knows nothing of the noise that a latent brings."""
        if not self.relative:  # features of the one kind are no anchors of the other
            self.relative = True
            self.history.clear()

    def learn_rate(self, call: Call, error: float) -> None:
        """From a check's own error, which is one noisy sample: a plan that follows each one wanders."""
        rate = error / (self.in_a_row + 1) / haste(call.schedule.picture_gain(call.step))
        if 0 < rate < math.inf:
            self.rate = rate if self.rate is None else self.rate ** (1 - NEW_SHARE) * rate**NEW_SHARE

    def move_on(self, call: Call, row: Row, accumulate: bool) -> None:
        """What was computed starts a new count of errors, what was accepted adds to it."""
        self.calls += 1
        if row.outcome == "rejected" and row.error is not None and row.threshold is not None:
            self.patience.rejected(row.error, row.threshold)
        elif row.outcome == "accepted":
            self.patience.accepted()
        elif row.outcome == "full":
            self.patience.computed()
        if row.skipped and row.error is not None:
            self.in_a_row += 1
            self.unchecked = self.unchecked + 1 if row.outcome == "trusted" else 0
            self.errors = self.errors.after(row.error, self.weight(call), call.renoised, accumulate)
        else:
            self._begin_gap()

    def _begin_gap(self) -> None:
        self.in_a_row, self.unchecked, self.errors, self.beside = 0, 0, ErrorSum(), None

    def taught(self, call: Call, beside: Tensors) -> None:
        """What a check has found, see `beside`. One at the newest anchor's own time (heun, repeated sigmas) reaches
        nowhere, and tells nothing of one that does."""
        self.reach = abs(call.time - self.history.times[-1])
        self.beside = beside if self.reach > 0 else None

    @property
    def nbytes(self) -> int:
        """Of all that is kept of it."""
        return self.history.nbytes + sum(t.numel() * t.element_size() for t in self.beside or ())

    def move(self, place: Place) -> None:
        """What is kept, to where `place` puts it."""
        self.history.move(place)
        self.beside = self.beside and tuple(map(place, self.beside))

    def farther(self, call: Call) -> float:
        """How many times as far as the last check's the forecast of this call reaches, at least once."""
        return max(abs(call.time - self.history.times[-1]) / self.reach, 1.0)

    def trusting(self, check_every: int) -> bool:
        """Whether the next forecast may go unchecked: the last check was not too long ago, and of the same anchors."""
        return self.beside is not None and self.unchecked + 1 < check_every

    def answered(self, call: Call, row: int, output: Tensors, forecast: bool) -> None:
        """The batch's `row` of the call's `output` went to the sampler: a forecast, or what was computed."""
        if forecast and _own_latent(call, row, output) is not None:
            self.corrector.accepted(call, output[0][row : row + 1])
        elif forecast:
            self.corrector.lose_track()

    def strayed(self, call: Call, row: int, exact: Exact, i: int) -> Astray | None:
        """How far the forecasts since the last full call led the latent astray; None if nobody knows."""
        before, latent = self.history.at(self.corrector.since), _own_latent(call, row, exact.output)
        if before is None or latent is None:
            return None
        output = exact.output[0][i : i + 1]
        moved = self.corrector.strayed(call, before.output[0].to(output.device), output)
        return None if moved is None else Astray.of(latent.level, latent.x, output, moved)

    def keep(self, call: Call, row: int, exact: Exact, i: int, place: Place, strayed: Astray | None = None) -> None:
        """Record as an anchor what `exact` has in its row `i`, which is the batch's `row`, as seen from where the
        latent is put right."""
        alone = exact.output[0].shape[0] == 1
        latent = _own_latent(call, row, exact.output)
        if latent is not None and call.level is not None:
            shown = call.level.denoised(latent.x.detach(), exact.output[0][i : i + 1].detach())
            self.undecided.see(call.level.ratio, shown)
        features = tuple(f[i : i + 1] for f in exact.features or ())
        embedded = None if exact.embedded is None else tuple(e[i : i + 1] for e in exact.embedded)
        added: Tensors | None = None
        if embedded is None:
            if self.relative:
                return
        elif self.needs_embedded(call):
            # Where anchors live, and in the place of what is not needed any more: a video's features are large.
            near = [e.to(f.device) for f, e in zip(features, embedded, strict=True)]
            outs = near if alone else [None] * len(near)
            added = tuple(torch.sub(f, e, out=out) for f, e, out in zip(features, near, outs, strict=True))
        if self.relative and added is not None:
            features, added = added, None
        elif not alone:  # copied apart, or one stream's anchor would hold the memory of the whole batch
            features = tuple(f.clone() for f in features)
        if strayed is not None and latent is not None and call.level is not None:
            output: Tensors = (seen_from(call.level, exact.output[0][i : i + 1], strayed),)
            latent = replace(latent, x=latent.x + strayed.latent)
        else:
            output = tuple(o[i : i + 1].clone() for o in exact.output)
            latent = latent and replace(latent, x=latent.x.clone())
        output = tuple(map(place, output))
        if latent is not None:
            latent = replace(latent, x=place(latent.x))
        added = added and tuple(map(place, added))
        self.history.record(Anchor(call.time, tuple(map(place, features)), output, latent, added))
        self.corrector.computed(call)


class Streams:
    """The streams of one run by their keys. Thread-safe as far as threads have streams of their own.

    depth: anchors that each keeps.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._by_key: dict[Hashable, Stream] = {}
        self._round = 0
        self._lock = threading.Lock()

    def of(self, call: Call) -> list[Stream]:
        """The stream of each row of `call`, made at its first call and told what this one brings."""
        with self._lock:
            for key in call.streams:
                if key not in self._by_key:
                    self._by_key[key] = Stream(self._depth)
            streams = [self._by_key[key] for key in call.streams]
            for stream in streams:
                stream.round = self._round
        if call.renoised:
            for stream in streams:
                stream.keep_relative()
        return streams

    def begin_round(self) -> None:
        """The sampler evaluates its model once more."""
        with self._lock:
            self._round += 1
            oldest = self._round - ROUNDS_KEPT
            self._by_key = {key: stream for key, stream in self._by_key.items() if stream.round >= oldest}

    def start_anew(self) -> None:
        """All of them: the latent is not where it was led."""
        with self._lock:
            for stream in self._by_key.values():
                stream.start_anew()

    def move(self, place: Place) -> None:
        """All that is kept, to where anchors live now."""
        with self._lock:
            for stream in self._by_key.values():
                stream.move(place)

    @property
    def count(self) -> int:
        with self._lock:
            return len(self._by_key)

    @property
    def nbytes(self) -> int:
        """Of all streams."""
        with self._lock:
            return sum(stream.nbytes for stream in self._by_key.values())

    def clear(self) -> None:
        with self._lock:
            self._by_key.clear()


def _own_latent(call: Call, row: int, output: Tensors) -> Latent | None:
    """The row's latent, if it is of the output's shape."""
    if call.latent is None or [t.shape[1:] for t in output] != [call.latent.x.shape[1:]]:
        return None
    return call.latent.row(row)
