"""Which calls belong together: a stream is the same function of the network along the same trajectory.

The check cannot see that anchors belong to something else, since both forecasts come from them. So whatever may change
what the network computes is part of a stream's key: its prompt, window and weights, the shape of its latent, the
conditions that act, what others put into `transformer_options`; and, since guidance may be told in ways that nobody
sees, the how-manieth call of all that it is within one `predict_noise`. Pure.
"""

from __future__ import annotations

import functools
import threading
import types
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from . import KEY

# Entries of `transformer_options` that change with every call by nature, or that the key holds in another way.
# Networks write down which block is being run; a copy of theirs may come back with the next call.
BY_NATURE = {
    *("sigmas", "sample_sigmas", "cond_or_uncond", "uuids", "context_window", "patches", "patches_replace"),
    *("callbacks", "wrappers", KEY),
    *("block", "block_index", "block_type", "total_blocks", "transformer_index", "img_slice"),
    *("activations_shape", "original_shape", "prefetch_dynamic_vbars"),
}

# Inside of containers and closures; what lies deeper is told apart by its identity alone.
DEPTH = 5


class Same:
    """Equal to that of the same object only. Holds the object, so that no other can get its id."""

    def __init__(self, of: object) -> None:
        self._of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._of is self._of

    def __hash__(self) -> int:
        return id(self._of)


def by_shape(tensor: Tensor) -> Hashable:
    """Tensors are made anew at each call from the conditioning, which has a key of its own: by their shape without the
    batch's, and so without any copy from the device."""
    return "tensor", tensor.dtype, tuple(tensor.shape[1:])


def likeness(
    value: Any,
    depth: int = DEPTH,
    of_tensor: Callable[[Tensor], Hashable] = by_shape,
    of_object: Callable[[Any], Hashable] = Same,
) -> Hashable:
    """Equal for values that make a network compute the same.

    Plain values and containers by content; functions by their code and what they are bound to and close over, for many
    are made anew at each call; other objects, and the notebooks of functions, by identity.
    """
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return type(value), value
    if isinstance(value, Tensor):
        return of_tensor(value)
    if depth == 0:
        return of_object(value)
    inside = functools.partial(likeness, depth=depth - 1, of_tensor=of_tensor, of_object=of_object)
    if isinstance(value, Mapping):
        return "mapping", frozenset((inside(key), inside(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "sequence", tuple(map(inside, value))
    if isinstance(value, (set, frozenset)):
        return "set", frozenset(map(inside, value))
    if isinstance(value, functools.partial):
        return "partial", inside(value.func), inside(value.args), inside(value.keywords)
    if isinstance(value, types.MethodType):
        return "method", inside(value.__func__), of_object(value.__self__)
    if isinstance(value, types.FunctionType):
        held = tuple(_held(cell, inside, of_object) for cell in value.__closure__ or ())
        return "function", value.__code__, inside(value.__defaults__), held
    return of_object(value)


def _held(cell: types.CellType, inside: Callable[[Any], Hashable], of_object: Callable[[Any], Hashable]) -> Hashable:
    """A list, dict or set that a function closes over is its notebook: it may be written in at every call."""
    try:
        content = cell.cell_contents
    except ValueError:  # not filled yet
        return None
    return of_object(content) if isinstance(content, (list, dict, set)) else inside(content)


def function_of(options: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Hashable:
    """What decides, beside the prompt, what the network computes in a call with these `transformer_options` and these
    arguments by name: which conditions act (a ControlNet, a mask, a reference) and what others have put there."""
    acting = {name: value for name, value in kwargs.items() if name != "transformer_options" and value is not None}
    put = {name: value for name, value in options.items() if name not in BY_NATURE}
    patches = {name: list(of) for name, of in (options.get("patches") or {}).items() if of}
    replaced = {name: of for name, of in (options.get("patches_replace") or {}).items() if of}
    wrappers = [
        (str(kind), str(key), len(of))
        for kind, by_key in (options.get("wrappers") or {}).items()
        for key, of in by_key.items()
        if of
    ]
    return likeness(acting), likeness(put), likeness(patches), likeness(replaced), frozenset(wrappers)


class Ordinals:
    """The how-manieth of its key a call is, within one `predict_noise`. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] = Counter()
        self._at: float | None = None
        self._in_rounds = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A `predict_noise` begins."""
        with self._lock:
            self._counts.clear()
            self._in_rounds = True

    def next(self, key: Hashable, sigma: float) -> int:
        with self._lock:
            if not self._in_rounds and sigma != self._at:  # a sampler that goes past `predict_noise`
                self._counts.clear()
            self._at = sigma
            self._counts[key] += 1
            return self._counts[key] - 1
