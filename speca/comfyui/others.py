"""What other packs have put in a network's way, and whose it is, as a reason to stay native names it.

Looked for by what it does to the network: a method that is not its class's, blocks that are not the network's own, one
pack's code both inside it and around its calls. Wrappers, patches and hooks are no reason by themselves; they are named
where blocks or calls are missing.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import nn

from ..adapters.base import Anatomy, Architecture, NotThisArchitectureError, uncompiled
from . import KEY
from .ranks import shares_out

NO_PACKS = {"comfy", "torch"}
"""Packages whose code in a network's way is nobody else's."""

AROUND_THE_NETWORK = (WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL)


class Own:
    """A network's own blocks and their parts, as they are when a run begins."""

    def __init__(self, network: nn.Module, architecture: Architecture) -> None:
        self._network = network
        self._stages = architecture.stages
        self._blocks = self._blocks_now()
        # Single layers are exchanged for other weights and dtypes all the time; attention has layers in it.
        self._parts = [module for block in self._blocks for module in block.modules() if module._modules]
        self._packages = {_package(kind) for kind in type(network).__mro__} | NO_PACKS

    def _blocks_now(self) -> list[nn.Module]:
        return [uncompiled(block) for stage in self._stages for block in stage.blocks_of(self._network)]

    def check(self) -> None:
        """Raises `NotThisArchitectureError` where the network does not run its own code on its own blocks.

        What another pack's code in their place keeps from one call to the next, nobody can know; on a skipped call it
        would keep nothing, or what was forecast.
        """
        whose = type(self._network).__name__
        for name, function in _methods(self._network):
            self._refuse(f"{name} of {whose}", function)
        blocks = self._blocks_now()
        if list(map(id, blocks)) != list(map(id, self._blocks)):
            strange = dict.fromkeys(type(block) for block in blocks if all(block is not own for own in self._blocks))
            raise _left_to_others(f"the blocks of {whose}", map(_named, strange))
        for kind in set(map(type, blocks)):
            self._refuse(f"a block of {whose}", kind)
        for module in self._parts:
            if "forward" in module.__dict__:
                self._refuse(f"forward of {type(module).__name__} in {whose}", module.__dict__["forward"])

    def _refuse(self, what: str, code: Any) -> None:
        if _package(code) not in self._packages and not shares_out(str(getattr(_inner(code), "__module__", ""))):
            raise _left_to_others(what, [_named(code)])


def _left_to_others(what: str, others: Iterable[str]) -> NotThisArchitectureError:
    by = "".join(f" ({name})" for name in others)
    return NotThisArchitectureError(
        f"another pack{by} has exchanged {what}, and SpeCa cannot know what that keeps; "
        "the run is computed without SpeCa"
    )


def _methods(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The network's methods that an instance or, in its class, another pack put in place of the class's own."""
    kind = type(network)
    for name, value in network.__dict__.items():
        if callable(getattr(kind, name, None)):
            yield name, value
    for name in ("forward", "_forward", "forward_orig"):
        if callable(method := getattr(kind, name, None)):
            yield name, method


def _package(code: Any) -> str:
    inner = _inner(code)
    return str(getattr(inner, "__module__", None) or type(inner).__module__).partition(".")[0]


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__func__", function)


def _named(function: Any) -> str:
    """A class or function by its name and module; a pack's module may be called by its whole path."""
    inner = _inner(function)
    if not hasattr(inner, "__qualname__"):
        inner = type(inner)
    name = inner.__qualname__.rpartition("<locals>.")[2]
    return f"{name} of {inner.__module__.replace(chr(92), '/').rpartition('/')[2]}"


def inside_and_around(network: nn.Module, anatomy: Anatomy, model_options: Mapping[str, Any]) -> str | None:
    """Why a run is left to a pack that is both inside the network (it replaces every block, or listens by hooks) and
    around its calls; None if there is none.

    Caches are made so: one end keeps what the other gives back, from some step on. Seen only then, it has already kept
    drafts for computed steps, and forecasts are in the picture. A pack at one end alone mostly guides, tiles, observes.
    """
    options = model_options.get("transformer_options", {})
    patches = _in_blocks_places(options)
    n_replaced = Counter(map(_package, patches))
    inside = [patch for patch in patches if n_replaced[_package(patch)] >= anatomy.n_blocks]
    for module in uncompiled(network).modules():
        inside += (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    wrappers = _wrapping(options, (*AROUND_THE_NETWORK, WrappersMP.DIFFUSION_MODEL))
    around = [model_options.get("model_function_wrapper"), *(wrapper for _, wrapper in wrappers)]
    by_package = {package: code for code in around if code is not None and (package := _package(code)) not in NO_PACKS}
    for code in inside:
        if (other := by_package.get(_package(code))) is not None:
            return (
                f"another pack works inside {type(uncompiled(network)).__name__} ({_named(code)}) and around its calls "
                f"({_named(other)}), as caches do, and SpeCa cannot know what that keeps; the run is computed without "
                "SpeCa"
            )
    return None


def in_the_network(options: Mapping[str, Any]) -> list[str]:
    """Names of what may keep blocks from running in a call with these `transformer_options`."""
    return [
        *_wrappers(options, (WrappersMP.DIFFUSION_MODEL,)),
        *dict.fromkeys(map(_named, _in_blocks_places(options))),
    ]


def around_the_network(model_options: Mapping[str, Any]) -> list[str]:
    """Names of what may answer in the place of the whole model."""
    function = model_options.get("model_function_wrapper")
    options = model_options.get("transformer_options", {})
    return [*([] if function is None else [_named(function)]), *_wrappers(options, AROUND_THE_NETWORK)]


def _in_blocks_places(options: Mapping[str, Any]) -> list[Any]:
    """What other packs run in the place of blocks, or of what is in them."""
    return [patch for replaced in (options.get("patches_replace") or {}).values() for patch in replaced.values()]


def _wrappers(options: Mapping[str, Any], kinds: tuple[str, ...]) -> list[str]:
    return [
        _named(wrapper) if key is None else f"{key} ({_named(wrapper)})" for key, wrapper in _wrapping(options, kinds)
    ]


def _wrapping(options: Mapping[str, Any], kinds: tuple[str, ...]) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """The wrappers of other packs, with their keys."""
    for kind in kinds:
        for key, wrappers in options.get("wrappers", {}).get(kind, {}).items():
            if key != KEY:
                for wrapper in wrappers:
                    yield key, wrapper


def blamed(what: str, others: list[str]) -> str:
    """The reason to go native: `what` is missing, and who may have kept it from running."""
    if not others:
        return f"{what}: something on this model skips them on its own; the rest of this run is left to it"
    names = others[0] if len(others) == 1 else f"one of {', '.join(others)}"
    return f"{what}: {names} answered in their place; two caches do not go together, the rest of this run is left to it"
