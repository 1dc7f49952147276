"""One sampling run: the way of a call from the sampler's question to its answer.

The session knows nothing of ComfyUI or of architectures: it drives a `Network`, which can compute a call in full or run
its last block and head on given features. What it does with that is written where each question is answered: `policy`
(compute, speculate or trust), `together` (what conditionings do in common), `draft` (what anchors say), `verify` (how
wrong that is), `answer` (what is returned), `stream` (what is remembered).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .answer import Part, Speculated, answer, beside_direct, join
from .call import Call, ForecastImpossibleError, Network, Tensors
from .config import SpeCaConfig
from .corrector import put_right
from .draft import ANCHORS_TO_FORECAST, forecast, forecast_output
from .events import Listener, Outcome, Plan, Row, RunHeader, RunRecord, Status
from .pace import Pace
from .policy import DOUBTS, Decision, decide_all, needs_anchor
from .stream import Place, Stream, Streams
from .tally import Tally
from .together import Together
from .verify import judge, row_errors
from .witness import Witness

Agree = Callable[[Sequence[float], torch.device], list[float]]


class Session:
    """State of one run. Thread-safe: ComfyUI may evaluate conditionings on several devices at once.

    place: moves a kept tensor to where anchors live.
    clock: seconds; must wait for the device, or times would say when work was queued, not when it was done.
    agree: on the worst value at each place among all processes that run this network together.
    witness: is shown every call, to find out how wrong its answer truly is.
    """

    def __init__(
        self,
        config: SpeCaConfig,
        header: RunHeader,
        listener: Listener | None = None,
        place: Place = lambda tensor: tensor,
        clock: Callable[[], float] = time.perf_counter,
        witness: Witness | None = None,
        agree: Agree = lambda values, device: list(values),
    ) -> None:
        self.config = config
        self.streams = Streams(max(config.order + 1, ANCHORS_TO_FORECAST))
        self.tally = Tally(header, listener, config.speed)
        self._pace = Pace(config, header)
        self._together = Together()
        self._place = place
        self._clock = clock
        self._witness = witness
        self._agree = agree

    def evaluate(self, call: Call, network: Network) -> Tensors:
        """The call's output, (B, ...) per tensor: forecasts that stand, and full computation for the other samples."""
        began = self._clock()
        streams = self.streams.of(call)
        threshold, plan = self._threshold(call, streams, network)
        alone = decide_all(self.config, call, streams, network.splittable, threshold)
        decisions = self._with_all(self._together.decide(call, alone, network.splittable), network)
        rows = {sample: Row(sample, "full", d.reason, limit=d.limit) for sample, d in enumerate(decisions)}
        trusted, unchecked = self._trust(call, streams, network, decisions, threshold)
        rows.update(trusted)
        hopeful = [sample for sample, d in enumerate(decisions) if d.action == "speculate"]
        speculated = None
        if hopeful:
            speculated, judged, checked_plan = self._speculate(call, streams, network, hopeful)
            plan = checked_plan or plan
            rows.update(judged)
        accepted = [sample for sample, row in rows.items() if row.outcome == "accepted"]
        computed = [sample for sample, row in rows.items() if not row.skipped]

        parts: list[Part] = [] if unchecked is None else [unchecked]
        full_seconds = 0.0
        if accepted and speculated is not None:
            answered = answer(speculated, call.rows_of(accepted))
            parts.append(answered)
            if self.config.check_every > 1 and not call.renoised:  # else nothing is ever trusted
                for row, beside in beside_direct(answered, speculated).items():
                    streams[row].taught(call, tuple(map(self._place, beside)))
        if computed:
            for row in call.rows_of(self._together.apart(call, computed)):
                streams[row].stays_astray()
            full_began = self._clock()
            parts.append(self._compute(call, streams, network, computed))
            full_seconds = self._clock() - full_began
        output = join(parts, len(streams))
        for i, stream in enumerate(streams):
            of_sample = rows[i % call.n_samples]
            stream.answered(call, i, output, of_sample.skipped)
            stream.move_on(call, of_sample, self.config.accumulate_error)
        self._together.made(call, [not rows[sample].skipped for sample in range(call.n_samples)])
        self._pace.made(call)
        record = self.tally.count(call, rows, began, self._clock(), full_seconds, self.streams.nbytes, plan)
        if self._witness is not None and any(row.skipped for row in rows.values()):
            own = [stream.errors.added for stream in streams]
            self._witness.see(record, call.n_samples, own, output, network)
        return output

    def _threshold(self, call: Call, streams: Sequence[Stream], network: Network) -> tuple[float, Plan | None]:
        """That of this call, and in speed mode the plan. Of several processes each has measured times of its own."""
        threshold, plan = self._pace.threshold(call, streams, network.splittable, self.tally)
        return threshold if plan is None else self._agree([threshold], network.device)[0], plan

    def _with_all(self, decisions: list[Decision], network: Network) -> list[Decision]:
        """What one of several processes will not speculate on, or not trust, none does."""
        doubts = self._agree([float(DOUBTS.index(d.action)) for d in decisions], network.device)
        agreed = [DOUBTS[int(doubt)] for doubt in doubts]
        others = [Decision(action, "with_rejected" if action == "full" else "") for action in agreed]
        return [d if d.action == other.action else other for d, other in zip(decisions, others, strict=True)]

    def _trust(
        self,
        call: Call,
        streams: Sequence[Stream],
        network: Network,
        decisions: Sequence[Decision],
        threshold: float,
    ) -> tuple[dict[int, Row], Part | None]:
        """What becomes of the samples that are to be trusted, and the answer for those that can be.

        No check would see numbers that are not finite, so what holds any is computed.
        """
        trusted = {
            sample: Row(sample, "trusted", d.reason, error=d.limit, threshold=threshold)
            for sample, d in enumerate(decisions)
            if d.action == "trust"
        }
        if not trusted:
            return {}, None
        rows = call.rows_of(list(trusted))
        outputs = forecast_output(self.config, call, streams, rows, network.device)
        finite = all(bool(tensor.isfinite().all()) for tensor in outputs)
        if self._agree([float(not finite)], network.device)[0] > 0:
            return {sample: Row(sample, "full", "not_finite") for sample in trusted}, None
        return trusted, Part(rows, outputs)

    def _speculate(
        self, call: Call, streams: Sequence[Stream], network: Network, samples: Sequence[int]
    ) -> tuple[Speculated | None, dict[int, Row], Plan | None]:
        """Forecast the samples' rows, run the last block and the head on them, and judge each sample (`_judge`)."""
        rows = call.rows_of(samples)
        try:
            draft = forecast(self.config, call, streams, rows, network.device)
            verified = network.speculate(draft.features, call.selection(rows), draft.on_embedded)
        except ForecastImpossibleError as refused:
            for row in rows:
                streams[row].history.clear()
            told = len(samples) + (self.config.speed is not None)  # as in `_judge`
            self._agree([math.inf] * told, network.device)
            return None, {sample: Row(sample, "full", refused.reason) for sample in samples}, None
        errors = row_errors(self.config.error_metric, verified, draft.direct, draft.other, draft.guessed)
        verdicts, plan = self._judge(call, streams, network, samples, errors)
        return Speculated(rows, verified, draft.direct), verdicts, plan

    def _judge(
        self,
        call: Call,
        streams: Sequence[Stream],
        network: Network,
        samples: Sequence[int],
        errors: Tensor,
    ) -> tuple[dict[int, Row], Plan | None]:
        """The verdict on each sample by the errors of all rows that were speculated, (T, R) for T tensors each.

        What they are tells more than what was foreseen of them, so in speed mode plan and threshold follow from them.
        """
        verdicts = {}
        # Rows run conditioning by conditioning; a sample is as wrong as its worst tensor's worst row (max keeps NaN).
        rows = call.rows_of(samples)
        weights = [streams[row].weight(call) for row in rows]
        found = errors.numpy(force=True)
        for row, error in zip(rows, found.max(axis=0).tolist(), strict=True):
            streams[row].learn_rate(call, error)
        threshold, plan = self._pace.threshold(call, streams, network.splittable, self.tally)
        by_tensor = (found * weights).reshape(len(found), -1, len(samples)).max(axis=1)
        told = [*by_tensor.max(axis=0).tolist(), *([] if plan is None else [threshold])]
        agreed = self._agree(told, network.device)
        threshold = threshold if plan is None else agreed.pop()
        for sample, error, own in zip(samples, agreed, by_tensor.T.tolist(), strict=True):
            carried = max(streams[row].errors.carried(call.renoised) for row in call.rows_of([sample]))
            verdict = judge(self._together.error(call, sample, error), threshold, carried)
            outcome: Outcome = "accepted" if verdict.accepted else "rejected"
            tensors = tuple(carried + each for each in own) if len(own) > 1 else ()
            verdicts[sample] = Row(sample, outcome, verdict.reason, verdict.error, threshold, tensors=tensors)
        if not network.splittable and any(row.outcome == "rejected" for row in verdicts.values()):
            # The batch cannot be taken apart: one sample's rejection computes all of them.
            for sample in [sample for sample, row in verdicts.items() if row.outcome == "accepted"]:
                verdicts[sample] = replace(verdicts[sample], outcome="full", reason="with_rejected")
        return verdicts, plan

    def _compute(self, call: Call, streams: Sequence[Stream], network: Network, samples: Sequence[int]) -> Part:
        """Run the samples' rows in full, keep what later forecasts need, and put right what those before led astray."""
        rows = call.rows_of(samples)
        keep = needs_anchor(self.config, call.progress)
        keep_embedded = keep and any(streams[row].needs_embedded(call) for row in rows)
        exact = network.full(call.selection(rows), keep, keep_embedded)
        strayed = [streams[row].strayed(call, row, exact, i) for i, row in enumerate(rows)]
        if keep and exact.features is not None:
            for i, row in enumerate(rows):
                streams[row].keep(call, row, exact, i, self._place, strayed[i])
        return Part(rows, put_right(call, exact.output, strayed))

    def close(self, status: Status) -> RunRecord:
        """End the run and free the anchors."""
        self.streams.clear()
        return self.tally.close(status)
