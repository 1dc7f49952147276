"""Whether two uncached runs are the same: all that decides what a guider samples, as one value to compare.

Tensors count by their content, what ComfyUI's nodes hand on as objects (models, patches, ControlNets) by which object
it is. A sampler or a guider may keep state where nobody sees it: one that holds more than plain values is like no
other, and its run is made again.
"""

from __future__ import annotations

import enum
import hashlib
import sys
import types
import uuid
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from . import KEY
from .identity import likeness

# What a guider has only while it samples, or from its model.
NOT_OF_A_GUIDER = {"model_patcher", "model_options", "original_conds", "conds", "inner_model", "loaded_models"}
# What nodes put on a model beside its options, from SpeCa's own things on.
ON_A_MODEL = (
    *("patches_uuid", "object_patches", "weight_wrapper_patches", "force_cast_weights", "additional_models"),
    *("callbacks", "injections", "hook_patches", "forced_hooks"),
)
PLAIN = (torch.dtype, torch.device, enum.Enum, uuid.UUID, type)
# Deeper than a call's options: conditionings hold lists of dicts of lists.
DEPTH = 8


class UnknownError(Exception):
    """What was found cannot be told from another."""


class SameLiving:
    """Equal to that of the same object, while that lives: a comparison must not keep a model in memory."""

    def __init__(self, of: object) -> None:
        try:
            self._of = weakref.ref(of)
        except TypeError as error:
            raise UnknownError(type(of).__name__) from error
        self._hash = id(of)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameLiving) and self._of() is not None and self._of() is other._of()

    def __hash__(self) -> int:
        return self._hash


def inputs_of(guider: Any, sampler: Any, sigmas: Tensor, latent: dict[str, Any]) -> Hashable | None:
    """Equal for runs of which nothing differs but the noise and SpeCa. None where that cannot be told."""

    def found() -> Hashable:
        patcher = guider.model_patcher
        return (
            type(guider),
            _strictly({name: value for name, value in vars(guider).items() if name not in NOT_OF_A_GUIDER}),
            _by_content(_without_ids(guider.original_conds)),
            _by_content(guider.model_options),
            SameLiving(patcher.model),
            tuple(_by_content(getattr(patcher, name, None)) for name in ON_A_MODEL),
            frozenset((key, len(patches)) for key, patches in patcher.patches.items()),
            _by_content({kind: _but_speca(by_key) for kind, by_key in patcher.wrappers.items()}),
            _by_content(_but_speca(patcher.attachments)),
            type(sampler),
            _strictly(vars(sampler)),
            digest(sigmas),
            digest(latent["samples"]),
            digest(latent.get("noise_mask")),
        )

    return told_apart(found)


def told_apart(found: Callable[[], Hashable]) -> Hashable | None:
    """What `found` gives, or None where something is of a kind that it does not know."""
    try:
        return found()
    except torch.OutOfMemoryError:
        raise
    except (UnknownError, AttributeError, TypeError, RuntimeError):
        return None


def digest(value: Any) -> Hashable:
    """Of a tensor's content, of several in one (`comfy.nested_tensor`), or of none."""
    if value is None:
        return None
    if getattr(value, "is_nested", False):
        return tuple(map(digest, value.unbind()))
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        raise UnknownError(type(value).__name__)
    content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return value.dtype, tuple(value.shape), hashlib.blake2b(content.data, digest_size=16).digest()


def _by_content(value: Any) -> Hashable:
    return likeness(value, DEPTH, digest, _same)


def _strictly(attributes: dict[str, Any]) -> Hashable:
    """ComfyUI's samplers are functions in decorators of torch's: those of a module count by their name in it."""
    named = {
        name: (value.__module__, value.__qualname__) if _is_of_a_module(value) else value
        for name, value in attributes.items()
    }
    return likeness(named, DEPTH, digest, _plain)


def _is_of_a_module(value: Any) -> bool:
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    return isinstance(value, types.FunctionType) and getattr(module, value.__qualname__, None) is value


def _same(value: Any) -> Hashable:
    return value if isinstance(value, PLAIN) else SameLiving(value)


def _plain(value: Any) -> Hashable:
    if isinstance(value, PLAIN):
        return value
    raise UnknownError(type(value).__name__)


def _without_ids(conds: dict[str, Any]) -> dict[str, Any]:
    """A guider names each of its conditionings anew."""
    return {
        kind: [{name: value for name, value in cond.items() if name != "uuid"} for cond in of]
        for kind, of in conds.items()
    }


def _but_speca(by_key: dict[Any, Any]) -> dict[Any, Any]:
    """A key whose list is empty says nothing."""
    return {key: value for key, value in by_key.items() if key != KEY and not (isinstance(value, list) and not value)}
