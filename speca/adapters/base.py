"""What an architecture must state, and the work that follows from it.

An architecture is data: where its blocks are and which tensors they carry from one to the next. A *carried* tensor
is a parameter of the block's forward that the block also returns; a skipped block returns them untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..call import Tensors

Parameter = str | int
"""A parameter of a block's forward: by name, or by position (self not counted) where the forward takes `*args`."""

# Where `nn.Module.compile` keeps what a call of the module runs instead of its forward (torch/nn/modules/module.py).
COMPILED_IN_PLACE = "_compiled_call_impl"


class NotThisArchitectureError(Exception):
    """A network does not have what an architecture states. The message says what is missing."""


@dataclass(frozen=True)
class BlockList:
    """Equal blocks that run one after the other.

    path: attribute of the network, dotted, naming an `nn.ModuleList` or `nn.ModuleDict`.
    carried: parameters of the block's forward that it returns, in the order in which it returns them. Such a parameter
        is a tensor, or a tuple of tensors (LTX-2 carries picture and sound in one).
    also_needed: further parameters of the *verification* block that depend on skipped blocks (the long skips of
        U-shaped transformers); forecast with the rest, and passed over in a block that gets None.
    returns: what a block returns, where that is not just `carried`: parameters whose values a skipped block returns.
    returns_tuple: whether one carried tensor comes back bare or in a tuple; with more it is always a tuple.
    batch_dim: the dimension of the carried tensors that counts samples; None where they have none, because the network
        takes one sample a call, or packs the tokens of several in one row. Then only calls with one row are cached.
    method: what the network calls of a block, where that is not the block itself.
    """

    path: str
    carried: tuple[Parameter, ...]
    also_needed: tuple[Parameter, ...] = ()
    returns: tuple[Parameter, ...] = ()
    returns_tuple: bool = False
    batch_dim: int | None = 0
    method: str = "forward"

    def blocks_of(self, network: nn.Module) -> list[nn.Module]:
        try:
            found = network.get_submodule(self.path)
        except AttributeError:
            return []
        return list(found.values()) if isinstance(found, nn.ModuleDict) else list(found.children())

    def check(self, block: nn.Module) -> None:
        """Raises `NotThisArchitectureError` if the block's forward lacks a parameter that is stated here."""
        for parameter in (*self.carried, *self.also_needed, *self.returns):
            position_of(block, parameter, self.method)

    def native(self, block: nn.Module) -> Callable[..., Any]:
        """What the network calls of `block` now, another pack's exchange of it included."""
        return native_of(block, self.method)

    def untouched(self, block: nn.Module) -> Callable[..., Any]:
        """A forward for `block` that computes nothing and returns the carried tensors as they came."""
        named = self.returns or self.carried
        returned = [(parameter, position_of(block, parameter, self.method)) for parameter in named]
        bare = len(returned) == 1 and not self.returns_tuple

        def forward(*args: Any, **kwargs: Any) -> Any:
            values = tuple([_argument(args, kwargs, parameter, position) for parameter, position in returned])
            return values[0] if bare else values

        return forward

    def returned_otherwise(
        self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], returned: Any
    ) -> str | None:
        """How what a call of `block` returned is of another form than what a skipped one gives back, as the end of a
        sentence; None if it is not."""
        expected = self.untouched(block)(*args, **kwargs)
        if _same_form(returned, expected):
            return None
        return f"{type(uncompiled(block)).__name__} returns {_form(returned)}, not {_form(expected)}"

    def needed(self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The tensors that enter `block` and depend on the blocks before it, samples first: (B, ...) each, B = 1 where
        they have no dimension for samples.

        What is not a tensor is handed on as it is, for the caller to refuse.
        """
        return tuple(
            self._samples_first(part) if isinstance(part, Tensor) else part
            for _, value in self._needed_arguments(block, args, kwargs)
            for part in (value if isinstance(value, (tuple, list)) else (value,))
        )

    def with_needed(
        self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], values: Tensors
    ) -> tuple[list[Any], dict[str, Any]]:
        """The block's arguments with what `needed` gave replaced by `values`, (B, ...) each."""
        new_args, new_kwargs = list(args), dict(kwargs)
        fresh = iter(self._as_carried(v) for v in values)
        for parameter, value in self._needed_arguments(block, args, kwargs):
            new: Any = type(value)(next(fresh) for _ in value) if isinstance(value, (tuple, list)) else next(fresh)
            if parameter in new_kwargs:
                new_kwargs[str(parameter)] = new
            else:
                new_args[position_of(block, parameter, self.method)] = new
        return new_args, new_kwargs

    def _samples_first(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0) if self.batch_dim is None else tensor.movedim(self.batch_dim, 0)

    def _as_carried(self, tensor: Tensor) -> Tensor:
        if self.batch_dim == 0:  # in the memory layout that it has: another one rounds otherwise
            return tensor
        return (tensor.squeeze(0) if self.batch_dim is None else tensor.movedim(0, self.batch_dim)).contiguous()

    def _needed_arguments(
        self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[tuple[Parameter, Any]]:
        needed = (*self.carried, *self.also_needed)
        found = [(p, _argument(args, kwargs, p, position_of(block, p, self.method))) for p in needed]
        return [(p, value) for p, value in found if value is not None or p in self.carried]


@dataclass(frozen=True)
class Architecture:
    """One family of networks that SpeCa knows.

    name: as reports have it. title: as people call it. networks: class names of `BaseModel.diffusion_model`.
    stages: the lists of blocks in the order in which they run; an empty list is passed over.
    also_skipped: further blocks that need not run when the blocks of the stages are skipped. They must run before the
        verification block; a network in which one runs after it is computed in full.
    mixes_rows: one row of a batch has a part in what comes out for the others. Then no row is ever computed apart from
        those it came with: one sample's rejection computes all of them.
    native: why no call may be skipped, as the end of a sentence that begins with the title; empty where calls may.
    native_with: (name, why) of entries of `transformer_options` with which no call of a run may be skipped.
    models: what people run with it, for the README's table.
    since: the version of ComfyUI that has it first; empty where the tests' own has it.
    untested: why the tests cannot build it, for the table; empty where the contract suite covers it.
    experimental: found by its structure alone, and tried out before it is trusted (`generic`).
    """

    name: str
    title: str
    networks: tuple[str, ...]
    stages: tuple[BlockList, ...]
    also_skipped: tuple[BlockList, ...] = ()
    mixes_rows: bool = False
    native: str = ""
    native_with: tuple[tuple[str, str], ...] = ()
    models: tuple[str, ...] = ()
    since: str = ""
    untested: str = ""
    experimental: bool = False


@dataclass(frozen=True)
class Anatomy:
    """An architecture found in one network: the blocks to skip and the one block that verifies.

    missing: where the architecture is the network's own structure, why no adapter is used.
    """

    architecture: Architecture
    skipped: tuple[tuple[BlockList, nn.Module], ...]
    verification_stage: BlockList
    verification_block: nn.Module
    helpers: tuple[tuple[BlockList, nn.Module], ...] = ()
    missing: str = ""

    @property
    def n_blocks(self) -> int:
        return len(self.skipped) + 1

    @cached_property
    def untouched(self) -> tuple[tuple[nn.Module, str, Callable[..., Any]], ...]:
        """Every block that a speculated call leaves out, with its method and what stands in for that meanwhile."""
        return tuple((block, stage.method, stage.untouched(block)) for stage, block in (*self.skipped, *self.helpers))


def find_anatomy(architecture: Architecture, network: nn.Module) -> Anatomy:
    """Locate the architecture's blocks in `network`. Raises `NotThisArchitectureError` saying what is missing."""
    found = [(stage, block) for stage in architecture.stages for block in stage.blocks_of(network)]
    if len(found) < 2:
        paths = " and ".join(stage.path for stage in architecture.stages)
        raise NotThisArchitectureError(f"{type(network).__name__} has fewer than two blocks in {paths}")
    helpers = [(stage, block) for stage in architecture.also_skipped for block in stage.blocks_of(network)]
    for stage, block in (*found, *helpers):
        stage.check(block)
    stage, block = found[-1]
    return Anatomy(architecture, tuple(found[:-1]), stage, block, tuple(helpers))


def _same_form(one: Any, other: Any) -> bool:
    """Whether both are tensors of one shape, or hold as many values in one order that are. What is None fits all."""
    if one is None or other is None:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same_form, one, other))
    return type(one) is type(other)


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) or "a number"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_form, value))}{',' * (len(value) == 1)})"
    return type(value).__name__


def comfyui() -> str:
    """This ComfyUI by its version, for a sentence about what it has changed."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return "this ComfyUI"
    return f"ComfyUI {__version__}"


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, out of the one that `torch.compile` puts around it, whose forward says nothing of what it
    takes."""
    return getattr(module, "_orig_mod", module)


def native_of(module: nn.Module, method: str = "forward") -> Callable[..., Any]:
    """What a call of the module runs now, for whoever is about to exchange it."""
    compiled = module.__dict__.get(COMPILED_IN_PLACE)
    if compiled is None or method != "forward":
        return getattr(module, method)
    before = module.__dict__.get(method)

    def as_compiled(*args: Any, **kwargs: Any) -> Any:
        """With the forward that it was compiled with, or it would be compiled anew around the one in its place."""
        with _attribute(module, method, before):
            return compiled(*args, **kwargs)

    return as_compiled


@contextmanager
def _attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """The instance's own `name` is `value` inside the block, or not there where that is None."""
    attributes = module.__dict__
    before = attributes.get(name)
    try:
        _put(attributes, name, value)
        yield
    finally:
        _put(attributes, name, before)


def _put(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is None:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def _argument(args: Sequence[Any], kwargs: dict[str, Any], parameter: Parameter, position: int) -> Any:
    if parameter in kwargs:
        return kwargs[str(parameter)]
    return args[position] if position < len(args) else None


def parameters_of(block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[Parameter, Any]:
    """All that a call of the block gives, by name, and by position where the position has no name."""
    names = {i: name for name, i in _positions(type(uncompiled(block)).forward).items()}
    return {names.get(i, i): value for i, value in enumerate(args)} | dict(kwargs)


def position_of(block: nn.Module, parameter: Parameter, method: str = "forward") -> int:
    """The position of `parameter` in the block's method, self not counted."""
    if isinstance(parameter, int):
        return parameter
    kind = type(uncompiled(block))
    native = getattr(kind, method, None)
    if native is None:
        raise NotThisArchitectureError(f"{kind.__name__} has no {method}")
    positions = _positions(native)
    if parameter not in positions:
        raise NotThisArchitectureError(f"{kind.__name__}.{method} has no parameter {parameter!r}")
    return positions[parameter]


@lru_cache(maxsize=256)
def _positions(forward: Callable[..., Any]) -> dict[str, int]:
    parameters = list(inspect.signature(forward).parameters.values())[1:]  # without self
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {parameter.name: i for i, parameter in enumerate(parameters) if parameter.kind not in variadic}


def exchanged_forward(
    module: nn.Module, forward: Callable[..., Any], method: str = "forward"
) -> AbstractContextManager[None]:
    """`module.forward`, or another method, is `forward` inside the block; what was there before, another pack's too, is
    put back after."""
    return exchanged_forwards(((module, method, forward),))


@contextmanager
def exchanged_forwards(forwards: Iterable[tuple[nn.Module, str, Callable[..., Any]]]) -> Iterator[None]:
    """As `exchanged_forward`, for many modules at once. What `nn.Module.compile` left on them is out of the way."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for module, method, forward in forwards:
            attributes = module.__dict__
            for name, value in ((method, forward), (COMPILED_IN_PLACE, None)):
                before.append((attributes, name, attributes.get(name)))
                _put(attributes, name, value)
        yield
    finally:
        for attributes, name, native in reversed(before):
            _put(attributes, name, native)


@contextmanager
def other_methods_noted(block: nn.Module, method: str) -> Iterator[set[str]]:
    """The names of the methods of `block` but `method` that are called meanwhile, from outside of it.

    None is noted of a block that is compiled in place: what notes them would be compiled into it.
    """
    called: set[str] = set()
    inside = False

    def noting(name: str, native: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return native(*args, **kwargs)
            inside = True
            called.add(name)
            try:
                return native(*args, **kwargs)
            finally:
                inside = False

        return noted

    own = [kind for kind in type(uncompiled(block)).__mro__ if issubclass(kind, nn.Module) and kind is not nn.Module]
    names = {name for kind in own for name, value in vars(kind).items() if inspect.isfunction(value)}
    others = [name for name in names if name != method and not name.startswith("__")]
    if COMPILED_IN_PLACE in vars(block):
        others = []
    with exchanged_forwards([(block, name, noting(name, getattr(block, name))) for name in others]):
        yield called


def called_otherwise(method: str, others: Iterable[str]) -> str:
    """The end of a sentence that says why nothing was seen of blocks that are held to be called by `method`."""
    return f"called by {' and '.join(sorted(others))}, not by {method}"


def is_batched(tensors: Sequence[Any], rows: int) -> bool:
    """Whether all are floating-point tensors with a row for each row of the batch."""
    return all(
        isinstance(t, Tensor) and t.ndim > 0 and t.shape[0] == rows and torch.is_floating_point(t) for t in tensors
    )
