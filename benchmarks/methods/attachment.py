"""How a rival rides on a model: state that lives for one sampling run, and every call of the network through it.

The same two wrappers of ComfyUI's and the same exchange of forwards as SpeCa's own, sharing no decision with it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from measure.quality import Cost
from measure.sampling import Sampled
from speca.adapters import recognise
from speca.adapters.base import Anatomy, exchanged_forward

from .base import Run

KEY = "benchmark_rival"

Decision = Literal["full", "forecast", "checked"]
"""`forecast`: no block ran. `checked`: the last block ran for real on what was forecast before it."""


@dataclass
class RunLog:
    """What happened to each call of the last run, and the most bytes its cache held."""

    decisions: list[Decision] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    cache_bytes: int = 0


class RivalRun(Protocol):
    """One sampling run. `apply` stands around BaseModel.apply_model: x, sigma, ... -> denoised."""

    def apply(self, executor: Any, *args: Any, **kwargs: Any) -> Any: ...


class NetworkRun:
    """A run that stands in for the network's own forward."""

    def __init__(self) -> None:
        self._anatomy: Anatomy | None = None

    def apply(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        network = executor.class_obj.diffusion_model
        if self._anatomy is None:
            self._anatomy = recognise(network)
        forward = functools.partial(self.forward, self._anatomy, network.forward)
        with exchanged_forward(network, forward):
            return executor(*args, **kwargs)

    def forward(self, anatomy: Anatomy, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


def attach_run(patcher: Any, start: Callable[[list[float], RunLog], RivalRun]) -> tuple[Any, RunLog]:
    """A clone of `patcher` that samples through the run that `start` makes of the run's sigmas, and its newest log."""
    import comfy.model_patcher
    from comfy.patcher_extension import WrappersMP

    log = RunLog()

    def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider, sigmas = executor.class_obj, args[3]
        log.decisions.clear()
        log.errors.clear()
        log.cache_bytes = 0
        unchanged = guider.model_options
        try:
            guider.model_options = comfy.model_patcher.create_model_options_clone(unchanged)
            options = guider.model_options.setdefault("transformer_options", {})
            options[KEY] = start(sigmas.tolist(), log)
            return executor(*args, **kwargs)
        finally:
            guider.model_options = unchanged

    def apply_model(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return transformer_options(args, kwargs)[KEY].apply(executor, *args, **kwargs)

    patched = patcher.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    return patched, log


def transformer_options(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Of a call of `apply_model`."""
    return args[5] if len(args) > 5 else kwargs.get("transformer_options", {})


def stream_of(options: dict[str, Any]) -> tuple[Any, ...]:
    """Tells the conditionings of a call: ComfyUI evaluates them together or one after the other."""
    return tuple(str(u) for u in options.get("uuids") or ()) or tuple(options.get("cond_or_uncond", ()))


def run_of(sampled: Sampled, log: RunLog, native: int) -> Run:
    """Shares of the run's network calls, in units of the sampler's (cond and uncond may come in two calls)."""
    counts = Counter(log.decisions)
    unit = native / max(len(log.decisions), 1)
    cost = Cost(native, counts["full"] * unit, counts["checked"] * unit, forecast=counts["forecast"] * unit)
    n = len(sampled.latents)
    return Run(sampled.latents, [cost] * n, sampled.seconds, log.cache_bytes // n)
