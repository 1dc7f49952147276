"""A run's lifetime on a ComfyUI model: wrappers for a run and for each call, and nothing that outlives them.

Two of ComfyUI's wrappers are used (`comfy/patcher_extension.py`). OUTER_SAMPLE encloses one sampling run: the
session is made there and dropped in `finally`. APPLY_MODEL encloses each call, on the very instance of the model that
is called: there the network's forward is exchanged for the length of the call (`run`, `network`).
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..adapters import NotThisArchitectureError, recognise
from ..adapters.base import Anatomy, exchanged_forward, uncompiled
from ..config import SpeCaConfig
from ..events import Listener, Origin, RunHeader, RunRecord, Status
from ..path import SamplingPath
from ..session import Session
from ..witness import Witness
from . import KEY
from .allocation import reason_to_stay_native, unrecorded
from .compiled import Forwards, order_wrappers
from .others import inside_and_around
from .placement import Placement
from .ranks import worst
from .run import Run

log = logging.getLogger(__name__)

# A detailer or a loop makes many short runs after the one that a report asks for.
RUNS_KEPT = 100

# Wrappers of other caches, by the key they register under. Two caches on one model would forecast from forecasts.
OTHER_CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}

_aside: ContextVar[bool] = ContextVar("speca_aside", default=False)
_witness: ContextVar[Witness | None] = ContextVar("speca_witness", default=None)
_settings: ContextVar[SpeCaConfig | None] = ContextVar("speca_settings", default=None)


@contextmanager
def _held(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    unchanged = variable.set(value)
    try:
        yield
    finally:
        variable.reset(unchanged)


def standing_aside() -> AbstractContextManager[None]:
    """Runs that start in here, on this thread, are the model's own, whatever SpeCa is on it."""
    return _held(_aside, True)


def witnessed(witness: Witness | None) -> AbstractContextManager[None]:
    """Runs that start in here, on this thread, are told their true errors by `witness`."""
    return _held(_witness, witness)


def with_settings(config: SpeCaConfig) -> AbstractContextManager[None]:
    """Runs that start in here, on this thread, have these settings in the place of the node's."""
    return _held(_settings, config)


def attach(
    model: comfy.model_patcher.ModelPatcher,
    config: SpeCaConfig,
    listener: Listener | None = None,
    origin: Callable[[], Origin] = Origin,
    note: str | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that samples with SpeCa. `model` itself is not changed, nor are its weights.

    A SpeCa that is attached already is replaced, so the node nearest the sampler wins. A network without an adapter
    is passed through: its runs are native and say so. note: what is to be said of each run.
    """
    patched = model.clone()
    attachment = Attachment(config, listener, origin, note)
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.APPLY_MODEL):
        patched.remove_wrappers_with_key(kind, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, attachment.sample)
    try:
        recognise(patched.model.diffusion_model)
    except NotThisArchitectureError:
        pass  # said once per run, in the run's own line
    else:
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, attachment.predict_noise)
        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, attachment.apply_model)
    patched.set_attachments(KEY, attachment)
    return patched


def attachment_of(model: comfy.model_patcher.ModelPatcher) -> Attachment | None:
    """SpeCa's attachment on `model`, or None if no SpeCa node is upstream."""
    return model.get_attachment(KEY)


def attachment_on(guider: Any, asking: str) -> Attachment:
    """What `attach` put on the guider's model. Raises ValueError, in the name of the node that is `asking`."""
    attachment = attachment_of(guider.model_patcher)
    if attachment is None:
        raise ValueError(
            f"{asking}: there is no SpeCa on the guider's model. Put a SpeCa node (not bypassed) between the model and "
            "the guider, and connect the guider to its output."
        )
    return attachment


class Attachment:
    """What rides on a patched model: the settings, and the records of its last runs. No state of a run is in here."""

    def __init__(
        self,
        config: SpeCaConfig,
        listener: Listener | None,
        origin: Callable[[], Origin],
        note: str | None = None,
    ) -> None:
        self._config = config
        self._listener = listener
        self._origin = origin
        self._note = note
        self._runs: deque[tuple[RunRecord, tuple[Any, ...]]] = deque(maxlen=RUNS_KEPT)

    @property
    def config(self) -> SpeCaConfig:
        return _settings.get() or self._config

    def why_native(self, guider: Any, steps: int) -> str | None:
        """Why a run of so many steps will be the model's own, as far as that is known before it."""
        try:
            anatomy = recognise(uncompiled(guider.model_patcher.model.diffusion_model))
        except NotThisArchitectureError as missing:
            return str(missing)
        return self._reason_to_stay_native(guider, steps, anatomy)

    def run_of(self, samples: Tensor | None = None) -> RunRecord | None:
        """The record of the run that made the latent `samples`, or None; without samples, of the last run."""
        if samples is None:
            return self._runs[-1][0] if self._runs else None
        wanted = _fingerprint(samples)
        return next((record for record, fingerprint in reversed(self._runs) if fingerprint == wanted), None)

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: `args` start with noise, latent image, sampler, sigmas (`CFGGuider.sample`)."""
        if _aside.get():
            return executor(*args, **kwargs)
        guider = executor.class_obj
        unchanged = guider.model_options
        try:
            run, options = self._start(guider, *args[:4])
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:
            log.warning("SpeCa could not start (%r); the run is computed natively", error, exc_info=True)
            return executor(*args, **kwargs)
        status: Status = "failed"
        result = None
        try:
            guider.model_options = options
            with nullcontext() if run.native else unrecorded():
                result = executor(*args, **kwargs)
            status = "finished"
            return result
        except comfy.model_management.InterruptProcessingException:
            status = "interrupted"
            raise
        finally:
            guider.model_options = unchanged
            self._end(run, status, result)

    def _start(self, guider: Any, noise: Tensor, _latent: Any, sampler: Any, sigmas: Tensor) -> tuple[Run, Any]:
        """The run, and the guider's options with it in them."""
        placement = Placement(self.config)
        session = self._open(guider, noise, sampler, sigmas, placement)
        options = comfy.model_patcher.create_model_options_clone(guider.model_options)
        path = SamplingPath(guider.model_patcher.get_model_object("model_sampling"), sigmas.tolist())
        network = guider.model_patcher.model.diffusion_model
        run = options.setdefault("transformer_options", {})[KEY] = Run(session, path, network, placement)
        order_wrappers(options["transformer_options"])
        return run, options

    def _end(self, run: Run, status: Status, result: Any) -> None:
        """Never raises: the samples are there, or another error is on its way."""
        try:
            self._runs.append((run.session.close(status), _fingerprint(result)))
            run.placement.release()
        except Exception as error:
            log.warning("SpeCa could not report this run (%r)", error, exc_info=True)

    def _open(self, guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor, placement: Placement) -> Session:
        model = guider.model_patcher.model
        device = guider.model_patcher.load_device
        steps = max(len(sigmas) - 1, 0)
        architecture, experimental, n_blocks, native = None, False, 0, None
        config = self.config
        try:
            anatomy = recognise(uncompiled(model.diffusion_model))
        except NotThisArchitectureError as missing:
            native = str(missing)
        else:
            architecture, experimental = anatomy.architecture.name, anatomy.architecture.experimental
            n_blocks = anatomy.n_blocks
            native = self._reason_to_stay_native(guider, steps, anatomy)
        header = RunHeader(
            settings=config.to_json(),
            model=type(model).__name__,
            architecture=architecture,
            experimental=experimental,
            n_blocks=n_blocks,
            steps=steps,
            sampler=_sampler_name(sampler),
            n_samples=noise.shape[0],
            origin=self._origin(),
            native=native,
            note=self._note,
        )
        witness = _witness.get()
        clock = clock_of(device) if witness is None else witness.clock
        session = Session(config, header, self._listener, placement, clock, witness, worst)
        if witness is not None:
            witness.tells(session.tally.amend)
        return session

    def _reason_to_stay_native(self, guider: Any, steps: int, anatomy: Anatomy) -> str | None:
        wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
        keys = {key for by_key in wrappers.values() for key in by_key}
        for key, name in OTHER_CACHES.items():
            if key in keys:
                return f"{name} is on this model too; remove one of the two nodes. This run is left to {name}"
        network = guider.model_patcher.model.diffusion_model
        if (other := inside_and_around(network, anatomy, guider.model_options)) is not None:
            return other
        if (recorded := reason_to_stay_native(guider.model_patcher.load_device)) is not None:
            return recorded
        warm_up = self.config.warmup_steps
        if self.config.speculates and steps < warm_up + 2:
            return (
                f"{steps} steps are too few for {warm_up} warm-up step{'' if warm_up == 1 else 's'} and a forecast "
                f"between two computed ones (at least {warm_up + 2}); it runs uncached"
            )
        return None

    def predict_noise(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """PREDICT_NOISE wrapper: `args` are x, timestep, model_options, seed (`CFGGuider.predict_noise`)."""
        options = args[2] if len(args) > 2 else kwargs.get("model_options", {})
        run: Run | None = options.get("transformer_options", {}).get(KEY)
        if run is None or run.native:
            return executor(*args, **kwargs)
        x, sigma = args[0], args[1]
        run.attempt(run.begin_round, x, sigma)
        denoised = executor(*args, **kwargs)
        run.attempt(run.end_round, x, sigma, denoised, options)
        return denoised

    def apply_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL wrapper (comfy/model_base.py): exchanges the network's forward for one call."""
        options = args[5] if len(args) > 5 else kwargs.get("transformer_options", {})
        run: Run | None = options.get(KEY)
        if run is None or run.native:
            return executor(*args, **kwargs)
        model = executor.class_obj
        network = model.diffusion_model
        try:
            anatomy = run.anatomy_of(network)
        except NotThisArchitectureError as missing:
            run.go_native(str(missing))
            return executor(*args, **kwargs)
        with exchanged_forward(network, functools.partial(run.forward, model, args[0], anatomy, Forwards.of(network))):
            return executor(*args, **kwargs)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds that wait for the device."""

    def waiting() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return waiting if device.type == "cuda" else time.perf_counter


def _sampler_name(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")


def _fingerprint(latent: Any) -> tuple[Any, ...]:
    """Tells one run's latent from another's, on whatever device and in whatever dtype it arrives at the report."""
    if not isinstance(latent, Tensor):
        return (None,)
    values = latent.detach().to("cpu", torch.float64).numpy()
    return (values.shape, round(float(values.sum()), 4), round(float(abs(values).sum()), 4))
