"""One guider's model without and with SpeCa, on the same noise."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import comfy.model_management

from ..clock import RunClock
from ..events import RunRecord
from ..witness import Witness
from .asked import Asked, Sampled, tensors_of
from .attach import Attachment, attachment_on, standing_aside, witnessed
from .same_run import SameLiving


@dataclass(frozen=True)
class Pair:
    """kept: the uncached result is that of an earlier comparison. record: SpeCa's own account of its run."""

    uncached: Sampled
    speca: Sampled
    kept: bool
    record: RunRecord | None
    witness: Witness | None


class Comparison:
    """Keeps the last uncached result, in system memory, for as long as it is what another run would give."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, Sampled] | None = None
        self._warm: Hashable = None

    def run(self, asked: Asked, true_errors: bool = False) -> Pair:
        """Sample with SpeCa, then without it, unless that is known. Raises ValueError where SpeCa is not on the model.

        What is interrupted or fails leaves neither a result nor anything on the model.
        """
        attachment = attachment_on(asked.guider, "SpeCa Compare")
        inputs, clock = asked.inputs(), asked.clock
        self._warm_up(asked)

        witness = Witness(attachment.config.error_metric, RunClock(clock)) if true_errors else None
        with witnessed(witness):
            before = attachment.run_of()
            speca = asked.timed(clock if witness is None else witness.clock)
        record = run_since(attachment, before)

        comfy.model_management.throw_exception_if_processing_interrupted()
        key = (inputs, asked.noise.key())
        if self._kept is not None and None not in key and self._kept[0] == key:
            known = self._kept[1]
            device = comfy.model_management.intermediate_device()
            uncached = Sampled(
                {**speca.latent, "samples": known.latent["samples"].to(device, copy=True)}, known.seconds
            )
            return Pair(uncached, speca, True, record, witness)
        self._kept = None
        with standing_aside():
            uncached = asked.timed(clock)
        if None not in key:
            samples = uncached.latent["samples"].to("cpu", copy=True)  # what is handed on may be worked on in place
            self._kept = key, Sampled({"samples": samples}, uncached.seconds)
        return Pair(uncached, speca, False, record, witness)

    def _warm_up(self, asked: Asked) -> None:
        """Once for each model and shape."""
        patcher = asked.guider.model_patcher
        warm = (
            SameLiving(patcher.model),
            patcher.patches_uuid,
            tuple(tensor.shape for tensor in tensors_of(asked.latent)),
        )
        if warm == self._warm:
            return
        asked.warm_up()
        self._warm = warm


def run_since(attachment: Attachment, before: RunRecord | None) -> RunRecord | None:
    record = attachment.run_of()
    return None if record is before else record
