"""Small stand-ins of what other packs do to a model or a sampler, each by the mechanism that they use."""

from __future__ import annotations

import copy
import functools
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


# -- other caches: each answers from what it kept where its input has hardly moved


class Store:
    """`answer(place, x, compute)`: what was kept for `place`, while x is within `near` (relative L1) of where it was
    computed; else computed and kept. `reused` counts."""

    def __init__(self, near: float = 0.2) -> None:
        self.near = near
        self.reused = 0
        self._kept: dict[Any, tuple[Tensor, Any]] = {}

    def holds(self, place: Any, x: Tensor) -> bool:
        if place not in self._kept or self._kept[place][0].shape != x.shape:
            return False
        at = self._kept[place][0]
        return bool((x - at).abs().mean() < self.near * at.abs().mean())

    def answer(self, place: Any, x: Tensor, compute: Callable[[], Any]) -> Any:
        if self.holds(place, x):
            self.reused += 1
            return copy.deepcopy(self._kept[place][1])
        at = x.clone()
        output = compute()
        self._kept[place] = at, copy.deepcopy(output)
        return output


def cache_in_function_wrapper(model: Any, store: Store) -> Any:
    """Around `apply_model`, in the one slot there is."""

    def kept_model_output(apply: Any, args: dict[str, Any]) -> Tensor:
        x = args["input"]
        return store.answer("model", x, lambda: apply(x, args["timestep"], **args["c"]))

    patched = model.clone()
    patched.set_model_unet_function_wrapper(kept_model_output)
    return patched


def cache_in_wrapper(model: Any, store: Store, kind: str, key: str | None = "some_cache") -> Any:
    """In one of ComfyUI's wrappers, whose first argument is x."""

    def kept_output(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return store.answer(kind, x, lambda: executor(x, *args, **kwargs))

    patched = model.clone()
    patched.add_wrapper_with_key(kind, key, kept_output)
    return patched


def cache_in_forward(model: Any, store: Store, name: str = "forward") -> Any:
    """The network's method exchanged on the instance while it is called; `forward_orig` in packs of 2024."""

    def kept_forward(apply: Any, args: dict[str, Any]) -> Tensor:
        network = apply.__self__.diffusion_model
        native = getattr(network, name)

        def stored_forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return store.answer(name, x, lambda: native(x, *args, **kwargs))

        network.__dict__[name] = stored_forward
        try:
            return apply(args["input"], args["timestep"], **args["c"])
        finally:
            del network.__dict__[name]

    patched = model.clone()
    patched.set_model_unet_function_wrapper(kept_forward)
    return patched


@contextmanager
def cache_in_class(network: type, store: Store) -> Iterator[None]:
    """The class's method exchanged, by a function that passes for it."""
    native = network._forward  # type: ignore[attr-defined]

    @functools.wraps(native)
    def stored_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return store.answer("class", x, lambda: native(self, x, *args, **kwargs))

    network._forward = stored_forward  # type: ignore[attr-defined]
    try:
        yield
    finally:
        network._forward = native  # type: ignore[attr-defined]


class _FirstBlock:
    """What the other blocks gave is given again while the first one gives nearly the same."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.near = False
        self.kept: dict[Any, Any] = {}

    def after_first(self, x: Tensor) -> None:
        self.near = self.store.holds("first", x)
        self.store.answer("first", x, lambda: None)

    def of_others(self, place: Any, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        if not self.near:
            self.kept[place] = {name: t.clone() for name, t in compute().items()}
        return {name: t.clone() for name, t in self.kept[place].items()}


def cache_in_patches(model: Any, store: Store, wrapped_at: str | None = None) -> Any:
    """By `patches_replace`, on a Flux. wrapped_at: the kind of a wrapper that tells it of each step, if it has one."""
    network, first = model.model.diffusion_model, _FirstBlock(store)
    patched = model.clone()

    def kept_block(place: Any, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            return extra["original_block"](args)

        if place != ("double_block", 0):
            return first.of_others(place, compute)
        out = compute()
        first.after_first(out["img"])
        return out

    for kind, blocks in (("double_block", network.double_blocks), ("single_block", network.single_blocks)):
        for i in range(len(blocks)):
            patched.set_model_patch_replace(functools.partial(kept_block, (kind, i)), "dit", kind, i)

    def told(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)

    if wrapped_at is not None:
        patched.add_wrapper_with_key(wrapped_at, "some_cache", told)
    return patched


@contextmanager
def hook_at_head(network: Any) -> Iterator[list[Tensor]]:
    """What enters a Flux's head, kept by a hook: caches that forecast it and answer around the model are fed so."""
    kept: list[Tensor] = []

    def kept_feature(module: Any, args: tuple[Any, ...]) -> None:
        kept[:] = [args[0].detach().clone()]

    handle = network.final_layer.register_forward_pre_hook(kept_feature)
    try:
        yield kept
    finally:
        handle.remove()


class CachedBlocks(torch.nn.Module):
    """One module in the place of a Flux's single blocks."""

    def __init__(self, blocks: Any, store: Store) -> None:
        super().__init__()
        self.blocks = blocks
        self.first = _FirstBlock(store)

    def forward(self, img: Tensor, **kwargs: Any) -> Tensor:
        img = self.blocks[0](img, **kwargs)
        self.first.after_first(img)

        def others() -> dict[str, Tensor]:
            x = img
            for block in self.blocks[1:]:
                x = block(x, **kwargs)
            return {"img": x}

        return self.first.of_others("others", others)["img"]


def cache_in_block_list(model: Any, store: Store) -> Any:
    """The network's list of blocks exchanged while it is called."""
    network = model.model.diffusion_model
    native = network.single_blocks
    cached = torch.nn.ModuleList([CachedBlocks(native, store)])

    def with_cached_blocks(apply: Any, args: dict[str, Any]) -> Tensor:
        network.single_blocks = cached
        try:
            return apply(args["input"], args["timestep"], **args["c"])
        finally:
            network.single_blocks = native

    patched = model.clone()
    patched.set_model_unet_function_wrapper(with_cached_blocks)
    return patched


@contextmanager
def exchanged_in_blocks(network: Any, store: Store, part: str = "") -> Iterator[None]:
    """The forwards of a Flux's single blocks, or of a part of each, exchanged on the instances."""
    modules = [block.get_submodule(part) for block in network.single_blocks]

    def kept_forward(i: int, native: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return store.answer(i, x, lambda: native(x, *args, **kwargs))

    for i, module in enumerate(modules):
        module.forward = functools.partial(kept_forward, i, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward
