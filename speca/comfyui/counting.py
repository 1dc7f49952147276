"""Which blocks of the network ran in a call that was to be computed in full.

"Computed" means that every block ran: counted, not assumed. Another cache on the same model answers for some blocks, or
for the whole network, with what it kept; forecasts would rest on its forecasts. Whatever it is called, it is known by
this: what ran in one call does not run in the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..adapters.base import Anatomy, BlockList, exchanged_forwards
from ..call import Tensors

Ran = set[int]
"""Places of the blocks that ran in the anatomy's order, in which the verification block is the last."""


class BlocksMissingError(Exception):
    """Blocks did not run in a call that was to be computed in full.

    how_many: the end of a sentence that says so. output: what came out all the same. ran: what did run, if it was
    counted. why: if it is known, and no other cache is to blame.
    """

    def __init__(self, how_many: str, output: Tensors, ran: Ran | None = None, why: str | None = None) -> None:
        super().__init__(how_many)
        self.how_many = how_many
        self.output = output
        self.ran = ran
        self.why = why


@contextmanager
def counted(anatomy: Anatomy) -> Iterator[Ran]:
    """The blocks that are called meanwhile. Noted outside of what a block is compiled to (`adapters.base.native_of`); a
    network that is compiled as a whole would be broken up at each."""
    ran: Ran = set()
    blocks = (*anatomy.skipped, (anatomy.verification_stage, anatomy.verification_block))
    with exchanged_forwards(
        (block, stage.method, _noting(ran, place, stage.native(block))) for place, (stage, block) in enumerate(blocks)
    ):
        yield ran


def _noting(ran: Ran, place: int, native: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        ran.add(place)
        return native(*args, **kwargs)

    return forward


@contextmanager
def returns_compared(anatomy: Anatomy) -> Iterator[list[str]]:
    """What blocks return meanwhile that skipped ones would not, as `BlockList.returned_otherwise` says it."""
    found: list[str] = []
    blocks = (*anatomy.skipped, *anatomy.helpers, (anatomy.verification_stage, anatomy.verification_block))

    def comparing(stage: BlockList, block: nn.Module, native: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            returned = native(*args, **kwargs)
            otherwise = stage.returned_otherwise(block, args, kwargs, returned)
            if otherwise is not None:
                found.append(otherwise)
            return returned

        return forward

    with exchanged_forwards(
        (block, stage.method, comparing(stage, block, stage.native(block))) for stage, block in blocks
    ):
        yield found


class Census:
    """What ran in the full calls of one run, by the streams that were called. Thread-safe."""

    def __init__(self) -> None:
        self._usual: dict[Hashable, Ran] = {}
        self._lock = threading.Lock()

    def has(self, streams: Hashable) -> bool:
        """Whether a full call of these streams was seen."""
        with self._lock:
            return streams in self._usual

    def missing(self, streams: Hashable, ran: Ran, n_blocks: int, n_replaced: int) -> str | None:
        """What of it is not as it should be, as `BlocksMissingError.how_many`; None if all is well.

        A patch that replaces blocks (`n_replaced`) may leave them out, if it leaves the same ones out of every call:
        that is how skip-layer guidance works.
        """
        with self._lock:
            usual = self._usual.setdefault(streams, ran)
        if len(usual) < n_blocks - n_replaced or not usual:
            return f"{len(usual)} of {n_blocks} blocks ran"
        if ran != usual:
            return f"{len(ran)} of {n_blocks} blocks ran, where {len(usual)} ran before"
        return None
