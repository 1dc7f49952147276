"""Settings for one guider's model that meet a goal: one recorded run, replays, and a few real runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ..adapters import recognise
from ..adapters.base import uncompiled
from ..clock import RunClock
from ..config import SpeCaConfig
from ..events import RunRecord
from ..recording import Recording, prices, seconds_of
from ..tuning import MAX_RUNS, Goal, Search, Settings, figures, first, foreseen, psnr_of
from .asked import Asked, Latent
from .attach import attachment_on, standing_aside, with_settings
from .compare import run_since
from .rehearsal import CannotRehearseError, Stand

log = logging.getLogger(__name__)

Psnr = Callable[[Latent, Latent], float]
"""In dB, of a result against the uncached one."""

# Of what is free of system memory: the rest of ComfyUI needs some too.
SHARE_OF_FREE_MEMORY = 0.8


@dataclass(frozen=True)
class Tuned:
    """config: with the chosen settings. latent: of the real run with them. identity: of the model (`identity_of`)."""

    config: SpeCaConfig
    search: Search
    latent: Latent
    uncached_seconds: float
    identity: Mapping[str, Any]


class Tuning:
    """One tuning. Everything that it holds goes with it."""

    def __init__(self, asked: Asked, psnr: Psnr) -> None:
        self._attachment = attachment_on(asked.guider, "SpeCa Tune")
        self._asked = asked
        self._steps = len(asked.sigmas) - 1
        self._psnr = psnr
        self._clock = asked.clock

    def run(self, goal: Goal, memory_limit: float) -> Tuned:
        """memory_limit: bytes of system memory for what is recorded.

        Raises ValueError where nothing can be tuned, and RecordingTooLargeError; both say what to do.
        """
        config = self._attachment.config
        native = self._attachment.why_native(self._asked.guider, self._steps)
        if native is not None:
            raise ValueError(f"SpeCa Tune: {native}")
        config = config if config.threshold > 0 else Settings(SpeCaConfig().threshold, config.order, 1).on(config)
        self._asked.warm_up()
        try:
            with standing_aside():
                uncached, reference, recording = self._record(config, memory_limit)
                search = self._foresee(goal, config, uncached, reference, recording)
        except CannotRehearseError as refused:
            raise ValueError(f"SpeCa Tune: this run cannot be replayed: {refused}") from None
        del recording
        latent = self._check(search, config, uncached, reference)
        identity = identity_of(self._asked.guider.model_patcher.model)
        return Tuned(search.chosen().settings.on(config), search, latent, uncached, identity)

    def _record(self, config: SpeCaConfig, memory_limit: float) -> tuple[float, Latent, Recording]:
        """Seconds of the uncached run, its result, and what was recorded of it."""
        free = comfy.model_management.get_free_memory(torch.device("cpu"))
        limit = min(memory_limit, SHARE_OF_FREE_MEMORY * free)
        recording = Recording(limit, max(self._steps, 1), RunClock(self._clock))

        def sample(
            native: Any, guider: Any, sigmas: Tensor, extra_args: Any, callback: Any, *args: Any, **kwargs: Any
        ) -> Tensor:
            def again(extra: dict[str, Any], go_on: Callable[..., None]) -> Tensor:
                def told(*step: Any) -> None:
                    go_on()
                    if callback is not None:
                        callback(*step)

                return native(guider, sigmas, extra, told, *args, **kwargs)

            return Stand(guider, sigmas, extra_args).record(config, recording, again)

        sampled = self._asked.instead(sample).timed(recording.clock)
        log.info("SpeCa Tune: recorded %d calls, %.2f GB", len(recording.calls), recording.nbytes / 1e9)
        return sampled.seconds, sampled.latent, recording

    def _foresee(
        self, goal: Goal, config: SpeCaConfig, uncached: float, reference: Latent, recording: Recording
    ) -> Search:
        """Replays, each time of what the earlier ones make worth it."""
        search, size = Search(goal), _rms(reference["samples"])

        def replayed(candidates: Iterable[Settings]) -> dict[Settings, tuple[RunRecord, Tensor]]:
            """Each with how far off its final latent is."""
            return {
                settings: (record, latent - reference["samples"].to(latent))
                for settings, (record, latent) in self._replay(config, recording, candidates).items()
            }

        def add(replays: Mapping[Settings, tuple[RunRecord, Tensor]]) -> None:
            for settings, (record, error) in replays.items():
                speedup = price.uncached(len(record.calls)) / seconds_of(record, price)
                off_by = foreseen(_rms(error), size, settings.on(config))
                search.add(settings, figures(record, speedup, psnr_of(off_by, at_one)))

        replays = replayed(first(config))
        price = prices(recording, uncached, [record for record, _ in replays.values()])
        middling = sorted((error for _, error in replays.values()), key=_rms)[len(replays) // 2]
        at_one = self._db_at_one(reference, middling)
        add(replays)
        for candidates in (search.finer, search.variants):
            replays |= replayed(candidates())
            add(replays)
        # A picture is cut off where a latent is not, so what an error of the latent is worth is taken where it counts.
        at_one = self._db_at_one(reference, replays[search.best()][1]) or at_one
        add(replays)
        return search

    def _replay(
        self, config: SpeCaConfig, recording: Recording, candidates: Iterable[Settings]
    ) -> dict[Settings, tuple[RunRecord, Tensor]]:
        """Each candidate's replay and the final latent that it foresees, (B, ...) in the scale of a LATENT."""
        wanted = list(candidates)
        replays: dict[Settings, tuple[RunRecord, Tensor]] = {}

        def sample(
            native: Any,
            guider: Any,
            sigmas: Tensor,
            extra: Any,
            callback: Any,
            noise: Tensor,
            image: Any,
            mask: Any,
            *_: Any,
        ) -> Tensor:
            stand = Stand(guider, sigmas, extra)
            bar = comfy.utils.ProgressBar(len(wanted))

            def again(options: dict[str, Any], go_on: Callable[..., None]) -> Tensor:
                torch.manual_seed(self._asked.noise.seed)
                return native(guider, sigmas, options, go_on, noise.clone(), image, mask, True)

            for settings in wanted:
                replays[settings] = stand.replay(settings.on(config), recording, again)
                bar.update(1)
            return noise

        if wanted:
            self._asked.instead(sample).sample()
        return replays

    def _db_at_one(self, reference: Latent, error: Tensor) -> float:
        """What PSNR a final latent has that is off by 1, by one that is off by `error`; 0 where that tells nothing."""
        samples = reference["samples"]
        psnr = self._psnr({**reference, "samples": samples + error.to(samples)}, reference)
        return psnr - psnr_of(_rms(error), 0.0) if math.isfinite(psnr) else 0.0

    def _check(self, search: Search, config: SpeCaConfig, uncached: float, reference: Latent) -> Latent:
        """Real runs, as long as one teaches something; the result of the chosen one."""
        latents: dict[Settings, Latent] = {}
        while (settings := search.next_run()) is not None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            before = self._attachment.run_of()
            with with_settings(settings.on(config)):
                sampled = self._asked.timed(self._clock)
            record = run_since(self._attachment, before)
            if record is None:
                raise ValueError("SpeCa Tune: this guider samples without SpeCa's model")
            speedup = record.totals.speedup or uncached / max(sampled.seconds, 1e-9)
            measured = figures(record, speedup, self._psnr(sampled.latent, reference))
            search.measure(settings, measured)
            latents[settings] = sampled.latent
            log.info("SpeCa Tune: run %d, %d at most: %s: %s", len(latents), MAX_RUNS, settings, measured.told())
        return latents[search.chosen().settings]


def identity_of(model: Any) -> dict[str, Any]:
    """What tells models (`comfy.model_base.BaseModel`) apart for which settings were found.

    Raises NotThisArchitectureError for one that SpeCa does not know.
    """
    anatomy = recognise(uncompiled(model.diffusion_model))
    return {"model": type(model).__name__, "architecture": anatomy.architecture.name, "n_blocks": anatomy.n_blocks}


def _rms(error: Tensor) -> float:
    return float(error.double().square().mean().sqrt())
