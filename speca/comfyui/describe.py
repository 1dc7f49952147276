"""ComfyUI's call of a network as a `speca.call.Call`: whose rows these are, and where in the run they stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..call import Call, ForecastImpossibleError, Latent
from ..path import SamplingPath
from .identity import Ordinals, function_of


def describe(
    model: Any,
    latent: Any,
    x: Any,
    options: dict[str, Any],
    path: SamplingPath,
    kwargs: Mapping[str, Any] | None = None,
    ordinals: Ordinals | None = None,
) -> Call:
    """What the sampler asks of the network.

    latent: the sampler's own x. x: what the network is given, a tensor or a list of them, each with a row for each
    sample under each conditioning. options: `transformer_options`. kwargs: what else the network is given, by name.
    ordinals: those of the run. Raises `ForecastImpossibleError` saying what is missing.
    """
    inputs = x if isinstance(x, (list, tuple)) else [x]
    shape = tuple(inputs[0].shape)
    conds = tuple(options.get("cond_or_uncond", (0,)))
    if shape[0] % len(conds):
        raise ForecastImpossibleError(f"{shape[0]} rows do not divide into {len(conds)} conditionings")
    n_samples = shape[0] // len(conds)
    sigmas = options.get("sigmas")
    if sigmas is None:
        raise ForecastImpossibleError("the sampler gives no sigma")
    sigma = float(sigmas.flatten()[0])
    step, progress = path.position(sigma)
    level = path.level(sigma)
    window, patches = _window(options), patch_signature(options)
    shapes = tuple(tuple(t.shape[1:]) for t in inputs)
    function = function_of(options, kwargs or {})
    ordinals = ordinals or Ordinals()
    chunks: list[tuple[Any, ...]] = []
    for uuid in options.get("uuids") or conds:
        key = str(uuid), window, patches, _hook_signature(model), function, shapes
        chunks.append((*key, ordinals.next(key, sigma)))
    return Call(
        time=float(model.model_sampling.timestep(sigmas.flatten()[:1]).float()),
        sigma=sigma,
        step=step,
        progress=progress,
        n_samples=n_samples,
        streams=tuple((chunks[row // n_samples], row % n_samples) for row in range(shape[0])),
        conds=conds,
        part=(window, shapes, chunks[0][-1]),
        kind=(conds, shape, patches),
        window=window[0] if window else None,
        schedule=path.schedule,
        level=level,
        ahead=path.ahead(sigma),
        latent=Latent(latent, level)
        if level is not None and isinstance(latent, Tensor) and latent.shape[0] == shape[0]
        else None,
        renoised=path.renoised and level is not None,
    )


def _window(options: dict[str, Any]) -> tuple[int, ...] | None:
    """The frames of a context window (comfy/context_windows.py); each window is a trajectory of its own."""
    window = options.get("context_window")
    return None if window is None else tuple(getattr(window, "index_list", ()))


def patch_signature(options: dict[str, Any]) -> tuple[str, ...]:
    """Names what is patched into this call. Guidance that perturbs the model (PAG, SLG) calls it with the same
    conditioning and other patches: that is another stream."""
    names = [f"patches/{name}" for name, patches in options.get("patches", {}).items() if patches]
    for group, replaced in options.get("patches_replace", {}).items():
        names.extend(f"{group}/{key}" for key in replaced)
    return tuple(sorted(names))


def _hook_signature(model: Any) -> tuple[tuple[int, float], ...]:
    """The hooks whose weights are in force and their strengths (comfy/hooks.py). A LoRA schedule changes the weights
    in the middle of a run: features of the old weights are no anchors of the new ones."""
    hooks = getattr(getattr(model, "current_patcher", None), "current_hooks", None)
    return tuple((id(hook.hook_ref), float(hook.strength)) for hook in getattr(hooks, "hooks", ()))
