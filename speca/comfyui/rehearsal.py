"""A guider's run recorded, and replayed with other settings, inside ComfyUI's own sampling.

Both happen in the place of a sampler, while ComfyUI has the model loaded and conditionings prepared: the recording is
the sampler's own way, a replay asks the guider again for each latent that was recorded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ..config import SpeCaConfig
from ..events import RunHeader, RunRecord
from ..path import SamplingPath
from ..recording import Recording, RecordingSession, ReplaySession, Round, on
from ..schedule import DECIDED_AT
from ..undecided import Undecided
from . import KEY
from .allocation import unrecorded
from .attach import clock_of
from .compiled import order_wrappers
from .placement import Placement
from .ranks import worst
from .run import Run


class CannotRehearseError(Exception):
    """A run that SpeCa leaves to the model itself; the message says why."""


@dataclass(frozen=True)
class Replay:
    """What a replay foresees of a run. error: of the final latent, (B, ...)."""

    record: RunRecord
    error: Tensor


class AsItComes(Placement):
    """Nothing is moved: what is recorded is copied away at once."""

    def expect(self, features: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        pass


class RecordingRun(Run):
    """A run whose evaluations are recorded."""

    recording: Recording

    def begin_round(self, x: Any, sigma: Any) -> None:
        super().begin_round(x, sigma)
        self.recording.begin_round(x, sigma)

    def end_round(self, x: Any, sigma: Any, denoised: Any, model_options: Mapping[str, Any]) -> None:
        super().end_round(x, sigma, denoised, model_options)
        self.recording.end_round(denoised)


class ReplayRun(Run):
    """A run that is asked what was asked before. Its latents never left the recorded way, so neither does `path`."""

    recorded: Round

    def end_round(self, x: Any, sigma: Any, denoised: Any, model_options: Mapping[str, Any]) -> None:
        super().end_round(
            x, sigma, None if self.recorded.denoised is None else self.recorded.denoised.to(x), model_options
        )


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

    def record(self, config: SpeCaConfig, recording: Recording, sample: Callable[[dict[str, Any]], Tensor]) -> Tensor:
        """What `sample` gives with the guider's options; every evaluation is recorded.

        Raises CannotRehearseError where the run was left to the model, and RecordingTooLargeError.
        """
        placement = AsItComes(config)
        session = RecordingSession(config, self._header(config), None, placement, recording.run_clock, agree=worst)
        session.recording = recording
        run = RecordingRun(session, self._path(), self._network, placement)
        run.recording = recording
        with unrecorded():
            samples = sample({**self._extra, "model_options": self._options(run)})
        _must_not_be_native(run)
        return samples

    def replay(self, config: SpeCaConfig, recording: Recording) -> Replay:
        """`config` on what was recorded. Raises CannotRehearseError."""
        placement = Placement(config)
        session = ReplaySession(config, self._header(config), None, placement, clock_of(self._device), agree=worst)
        run = ReplayRun(session, self._path(), self._network, placement)
        options = self._options(run)
        costs = costs_of(recording, self._path())
        error = torch.zeros(())
        try:
            with unrecorded():
                for recorded, cost in zip(session.replay(recording), costs, strict=True):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    run.recorded = recorded
                    x, sigma = on(self._device, recorded.x), on(self._device, recorded.sigma)
                    denoised = self._guider(x, sigma, model_options=options, seed=self._extra.get("seed"))
                    _must_not_be_native(run)
                    assert recorded.denoised is not None
                    error = error + cost * (denoised.cpu().float() - recorded.denoised.float())
            return Replay(session.tally.record("finished"), error)
        finally:
            session.streams.clear()
            placement.release()

    def in_latent(self, samples: Tensor, error: Tensor) -> Tensor:
        """`samples`, as the sampler leaves them, moved by `error`, in the scale of a LATENT."""
        return self._model.process_latent_out(samples.float() + error.to(samples.device))

    @property
    def _network(self) -> nn.Module:
        return self._model.diffusion_model

    def _path(self) -> SamplingPath:
        return SamplingPath(self._sampling, self._sigmas)

    def _options(self, run: Run) -> dict[str, Any]:
        """The guider's, with the run in them."""
        options = comfy.model_patcher.create_model_options_clone(self._extra["model_options"])
        within = options.setdefault("transformer_options", {})
        within[KEY] = run
        order_wrappers(within)
        return options

    def _header(self, config: SpeCaConfig) -> RunHeader:
        return RunHeader(config.to_json(), type(self._model).__name__, None, False, 0, len(self._sigmas) - 1, "", 1)


def costs_of(recording: Recording, path: SamplingPath) -> list[float]:
    """How far an error of 1 in the denoised picture of each evaluation moves the final latent.

    A step along (x - denoised) / sigma moves the latent by step / sigma of it. What the network takes for noise it
    undoes later, as in `schedule.NoiseLevel.final_error`. Evaluations within one step share its length.
    """
    steps = [path.position(float(each.sigma.flatten()[0]))[0] for each in recording.rounds]
    within = Counter(steps)
    undecided = Undecided()
    costs = []
    for each, step in zip(recording.rounds, steps, strict=True):
        sigma = float(each.sigma.flatten()[0])
        level = path.level(sigma)
        if level is None or sigma <= 0:
            costs.append(1.0 / len(steps))
            continue
        if each.denoised is not None:
            undecided.see(level.ratio, each.denoised[:1])
        length = abs(path.length(step)) / within[step]
        decided_at = undecided.decided_at or DECIDED_AT
        costs.append(length / sigma / math.hypot(level.signal, level.noise / decided_at))
    return costs


def _must_not_be_native(run: Run) -> None:
    if run.native:
        raise CannotRehearseError(run.session.tally.header.native)
