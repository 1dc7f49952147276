"""A guider's run recorded, and replayed with other settings, inside ComfyUI's own sampling.

Both happen in the place of a sampler, while ComfyUI has the model loaded and conditionings prepared: the recording is
the sampler's own way, a replay goes that way again with what was recorded in the place of full calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
from torch import Tensor, nn

from ..config import SpeCaConfig
from ..events import RunHeader, RunRecord
from ..path import SamplingPath
from ..recording import Recording, RecordingSession, ReplaySession
from ..session import Session
from . import KEY
from .allocation import unrecorded
from .attach import clock_of
from .compiled import order_wrappers
from .placement import Placement
from .ranks import worst
from .run import Run

Sampling = Callable[[dict[str, Any], Callable[..., None]], Tensor]
"""The sampler's own: given `extra_args` and what it is to call in each step, -> (B, ...)."""


class CannotRehearseError(Exception):
    """A run that SpeCa leaves to the model itself; the message says why."""


class AsItComes(Placement):
    """Nothing is moved: what is recorded is copied away at once."""

    def expect(self, features: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        pass


class Stand:
    """Where a sampler stands: what ComfyUI's guider hands to it (`KSAMPLER.sample` in comfy/samplers.py).

    guider, sigmas, extra_args: the first three arguments.
    """

    def __init__(self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any]) -> None:
        patcher = guider.model_patcher
        self._guider = guider
        self._extra = extra_args
        self._sigmas = sigmas.tolist()
        self._sampling = patcher.get_model_object("model_sampling")
        self._model = patcher.model
        self._device = patcher.load_device

    def record(self, config: SpeCaConfig, recording: Recording, sample: Sampling) -> Tensor:
        """What `sample` gives with the guider's options; every call is recorded.

        Raises CannotRehearseError where the run was left to the model, and RecordingTooLargeError.
        """
        placement = AsItComes(config)
        session = RecordingSession(config, self._header(config), None, placement, recording.clock, agree=worst)
        session.recording = recording
        return self._run(session, placement, sample)

    def replay(self, config: SpeCaConfig, recording: Recording, sample: Sampling) -> tuple[RunRecord, Tensor]:
        """`config` on what was recorded: the run, and the final latent, (B, ...), in the scale of a LATENT.

        Raises CannotRehearseError.
        """
        placement = Placement(config)
        session = ReplaySession(config, self._header(config), None, placement, clock_of(self._device), agree=worst)
        session.recorded = iter(recording.calls)
        try:
            samples = self._run(session, placement, sample)
            return session.tally.record("finished"), self._model.process_latent_out(samples.float())
        finally:
            session.streams.clear()
            placement.release()

    def _run(self, session: Session, placement: Placement, sample: Sampling) -> Tensor:
        run = Run(session, SamplingPath(self._sampling, self._sigmas), self._network, placement)
        options = comfy.model_patcher.create_model_options_clone(self._extra["model_options"])
        within = options.setdefault("transformer_options", {})
        within[KEY] = run
        order_wrappers(within)

        def go_on(*args: Any) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if run.native:
                raise CannotRehearseError(session.tally.header.native)

        with unrecorded():
            samples = sample({**self._extra, "model_options": options}, go_on)
        go_on()
        return samples

    @property
    def _network(self) -> nn.Module:
        return self._model.diffusion_model

    def _header(self, config: SpeCaConfig) -> RunHeader:
        return RunHeader(config.to_json(), type(self._model).__name__, None, False, 0, len(self._sigmas) - 1, "", 1)
