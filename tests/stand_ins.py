"""Small stand-ins of what other packs do to a model or a sampler, each by the mechanism that they use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import comfy.ldm.flux.layers
import comfy.samplers
import torch
from torch import Tensor

# -- tiles: a model function wrapper calls the model once per batch of tiles (tiled diffusion nodes)


def tiled(model: Any, places: Callable[[int], list[tuple[int, int]]], size: int = 20, at_once: int = 1) -> Any:
    """`places(call)`: the upper left corners of the tiles in that call of the wrapper."""
    counted = iter(range(1 << 30))

    def wrapper(apply: Any, args: dict[str, Any]) -> Tensor:
        x, corners = args["input"], places(next(counted))
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(0, len(corners), at_once):
            group = corners[i : i + at_once]
            crops = torch.cat([x[..., r : r + size, c : c + size] for r, c in group])
            n = len(group)
            t = args["timestep"].repeat(n)
            given = {k: _repeated(v, n) if k != "transformer_options" else v for k, v in args["c"].items()}
            for (r, c), out in zip(group, apply(crops, t, **given).chunk(n), strict=True):
                total[..., r : r + size, c : c + size] += out
                count[..., r : r + size, c : c + size] += 1
        return total / count

    patched = model.clone()
    patched.set_model_unet_function_wrapper(wrapper)
    return patched


def _repeated(value: Any, n: int) -> Any:
    return value.repeat(n, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value


# -- guidance by a perturbed network (LTX's multimodal guider, token perturbation): told by a flag


class Perturbed(comfy.samplers.CFGGuider):
    """positive + scale * (positive - perturbed), both under the same conditioning. `flag` is set for the second."""

    def __init__(self, model: Any, scale: float, flag: Callable[[dict[str, Any], bool], None]) -> None:
        super().__init__(model)
        self.scale, self.flag = scale, flag

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Tensor:
        positive = self.conds["positive"]
        outs = []
        for on in (False, True):
            options = {**model_options, "transformer_options": {**model_options["transformer_options"]}}
            self.flag(options["transformer_options"], on)
            outs += comfy.samplers.calc_cond_batch(self.inner_model, [positive], x, timestep, options)
        self.flag({}, False)
        return outs[0] + self.scale * (outs[0] - outs[1])


def in_options(options: dict[str, Any], on: bool) -> None:
    options["perturb"] = on


SWITCH = SimpleNamespace(on=False)


def in_an_object(options: dict[str, Any], on: bool) -> None:
    """`options` do not show it."""
    SWITCH.on = on


@contextmanager
def perturbing_blocks(network: Any, skipped: int = 3) -> Iterator[None]:
    """The first single blocks of a Flux heed the flag: they do nothing then, as skip-layer guidance has it."""
    some = {id(block) for block in network.single_blocks[:skipped]}
    block = comfy.ldm.flux.layers.SingleStreamBlock
    native = block.forward

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        perturbed = SWITCH.on or (kwargs.get("transformer_options") or {}).get("perturb")
        return x if perturbed and id(self) in some else native(self, x, *args, **kwargs)

    block.forward = forward
    try:
        yield
    finally:
        block.forward = native


# -- samplers that put noise in where none falls due


def euler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, **kwargs: Any) -> Tensor:
    return _steps(model, x, sigmas, extra_args or {})


def _step(model: Any, x: Tensor, sigma: Tensor, after: Tensor, extra: dict[str, Any]) -> Tensor:
    denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra)
    return x + (x - denoised) / sigma * (after - sigma)


def _steps(model: Any, x: Tensor, sigmas: Tensor, extra: dict[str, Any]) -> Tensor:
    for before, after in itertools.pairwise(sigmas):
        x = _step(model, x, before, after, extra)
    return x


def _noised(denoised: Tensor, sigma: Tensor, generator: torch.Generator, model: Any) -> Tensor:
    noise = torch.randn(denoised.shape, generator=generator)
    sampling = model.inner_model.inner_model.model_sampling
    return sampling.noise_scaling(sigma, noise, denoised)


def inner_loop(every: int = 4, from_step: int = 3) -> Callable[..., Tensor]:
    """Each `every`-th step is made twice: its denoised picture is noised anew at the same sigma."""

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **kwargs: Any) -> Tensor:
        generator = torch.Generator().manual_seed(11)
        for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            if i >= from_step and (i - from_step) % every == 0:
                denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
                x = _noised(denoised, sigma, generator, model)
            x = _step(model, x, sigma, after, extra_args)
        return x

    return sample


def restarts(back: int = 6, times: int = 2) -> Callable[..., Tensor]:
    """At two thirds of the run, up again by `back` sigmas with fresh noise, `times` over."""

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **kwargs: Any) -> Tensor:
        generator = torch.Generator().manual_seed(12)
        turn = 2 * (len(sigmas) - 1) // 3
        x = _steps(model, x, sigmas[: turn + 1], extra_args)
        for _ in range(times):
            sigma = sigmas[turn]
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            x = _noised(denoised, sigmas[turn - back], generator, model)
            x = _steps(model, x, sigmas[turn - back : turn + 1], extra_args)
        return _steps(model, x, sigmas[turn:], extra_args)

    return sample


def moves_its_picture(at_step: int = 8, by: int = 5) -> Callable[..., Tensor]:
    """The latent is rolled once, noise and all: no noise is fresh, and yet the next latent is not where it led."""

    def sample(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **kwargs: Any) -> Tensor:
        for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            x = _step(model, x.roll(by, -1) if i == at_step else x, sigma, after, extra_args)
        return x

    return sample
