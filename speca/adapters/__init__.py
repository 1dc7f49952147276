"""The architectures SpeCa knows, and how a network is matched with one."""

from __future__ import annotations

from torch import nn

from .base import Anatomy, Architecture, NotThisArchitectureError, find_anatomy
from .flux import CHROMA, FLUX

ARCHITECTURES: tuple[Architecture, ...] = (FLUX, CHROMA)


def recognise(network: nn.Module) -> Anatomy:
    """The anatomy of `network`. Raises `NotThisArchitectureError` with a sentence a person can act on.

    Matched by the class names of the network and of its bases, so that a subclass (a pack's own variant of FLUX) is
    recognised; then every statement of the architecture is checked against the network itself.
    """
    names = [cls.__name__ for cls in type(network).__mro__]
    for architecture in ARCHITECTURES:
        if set(architecture.networks) & set(names):
            return find_anatomy(architecture, network)
    raise NotThisArchitectureError(f"no adapter for {names[0]}; it runs uncached")
