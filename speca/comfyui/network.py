"""A network bound to one call: run it in full, or its last block and head on given features.

For the length of such a run the forwards of blocks are exchanged, and put back. Exchanging beats `patches_replace`,
which half of the architectures lack, and leaves other packs' patches in force: what they wrap around a block wraps a
skipped block as well, and what they add before the verification block is in the features that were kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..adapters.base import (
    Anatomy,
    called_otherwise,
    comfyui,
    exchanged_forward,
    exchanged_forwards,
    is_batched,
    other_methods_noted,
)
from ..call import Exact, ForecastImpossibleError, Tensors
from .compiled import Forwards, Keep, tapped
from .counting import BlocksMissingError, Census, Ran, counted, returns_compared
from .placement import Placement


class BoundNetwork:
    """`session.Network` over one call of a ComfyUI network."""

    def __init__(
        self,
        anatomy: Anatomy,
        forwards: Forwards,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        n_rows: int,
        splittable: bool,
        census: Census | None = None,
        streams: Hashable = None,
        placement: Placement | None = None,
    ) -> None:
        self._anatomy = anatomy
        self._forwards = forwards
        self._args = args
        self._kwargs = kwargs
        self._n_rows = n_rows
        self._census = census
        self._streams = streams
        self._placement = placement
        self._called_in_draft: Ran | None = None
        self.splittable = splittable
        x = args[0]
        self.device = (x[0] if isinstance(x, (list, tuple)) else x).device
        self._output_type: type | None = None
        self.fault: Exception | None = None
        """What the network raised when it was run in full: its own affair, as without SpeCa."""

    def full(self, rows: Sequence[int] | None, keep_features: bool, keep_embedded: bool = False) -> Exact:
        block, stage = self._anatomy.verification_block, self._anatomy.verification_stage
        kept: list[Tensors | None] = []
        troubles: list[Exception] = []
        n_rows = self._n_rows if rows is None else len(rows)

        def shielded(look: Keep) -> Keep:
            """What fails in it is raised when the network is through, for it is not the network's fault."""

            def shield(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                try:
                    look(args, kwargs)
                except Exception as error:
                    troubles.append(error)

            return shield

        # Blocks work in place: what enters one is copied before it runs.
        @shielded
        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            needed = tuple(t.detach() for t in stage.needed(block, args, kwargs))
            kept.append(self._copies_to_keep(needed) if is_batched(needed, n_rows) else None)

        def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if kept:  # what runs after the verification block cannot be skipped
                kept.append(None)

        with ExitStack() as taps:
            if not self._forwards.compiled:
                ran = taps.enter_context(counted(self._anatomy))
                others = taps.enter_context(other_methods_noted(block, stage.method))
                otherwise: list[str] = []
                if self._census is not None and not self._census.has(self._streams):  # what a block returns stays so
                    otherwise = taps.enter_context(returns_compared(self._anatomy))
            if keep_features:
                taps.enter_context(tapped(stage, block, keep, self._forwards.compiled))
                for helper_stage, helper in self._anatomy.helpers:
                    taps.enter_context(tapped(helper_stage, helper, note, self._forwards.compiled))
            output = self._run(rows)
        if troubles:
            raise troubles[0]
        if not self._forwards.compiled:
            self._check_that_all_ran(ran, others, output)
            self._check_what_they_returned(otherwise, output)
        elif keep_features and not kept:  # of a network compiled as a whole only what is tapped can be counted
            raise BlocksMissingError("the last block did not run", output)
        if self._placement is not None and (n_rows > 1 or keep_embedded):  # rows are read apart, or all of them
            self._placement.settle()
        features = kept[0] if len(kept) == 1 else None
        embedded = self.embedded(rows) if features is not None and keep_embedded else None
        if features is None or embedded is None or [t.shape for t in embedded] != [f.shape for f in features]:
            return Exact(features, output)
        return Exact(features, output, embedded)

    def _copies_to_keep(self, features: Tensors) -> Tensors:
        """Where anchors live at once."""
        if self._placement is None:
            return tuple(map(torch.clone, features))
        x = self._args[0]
        self._placement.expect(features, x if isinstance(x, (list, tuple)) else (x,))
        return tuple(map(self._placement.copy, features))

    def _check_that_all_ran(self, ran: Ran, others: set[str], output: Tensors) -> None:
        if self._census is None:
            return
        replaced = self._options.get("patches_replace") or {}
        n_replaced = sum(map(len, replaced.values()))
        missing = self._census.missing(self._streams, ran, self._anatomy.n_blocks, n_replaced)
        if missing is None:
            return
        why = None
        if not ran and others:
            architecture, method = self._anatomy.architecture, self._anatomy.verification_stage.method
            why = f"{architecture.title}'s blocks are {called_otherwise(method, others)}; it runs uncached"
        raise BlocksMissingError(missing, output, ran, why)

    def _check_what_they_returned(self, otherwise: list[str], output: Tensors) -> None:
        """Raises `BlocksMissingError` where a block gives back something else than a skipped one would."""
        if not otherwise:
            return
        known = self._anatomy.architecture
        knows = "SpeCa saw otherwise in its trial" if known.experimental else f"SpeCa knows {known.title}"
        raise BlocksMissingError(
            "blocks are of another form", output, why=f"{knows}, but in {comfyui()} {otherwise[0]}; it runs uncached"
        )

    @property
    def _options(self) -> dict[str, Any]:
        return self._kwargs.get("transformer_options") or {}

    def past_others(self, missing: BlocksMissingError) -> Tensors:
        """What the model gives, where blocks were missing in its full run.

        That is what came out, for it is what comes out without SpeCa; but not where blocks were called on a draft in
        this call that were not called any more in full: what has seen the draft gives it back as if it were computed.
        Then past wrappers, and if that is of no use past patches.
        """
        if self._called_in_draft is None or self._called_in_draft == missing.ran:
            return missing.output if missing.output[0].shape[0] == self._n_rows else self._run(None)
        wrappers = self._options.get("wrappers") or {}
        without = {"wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: {}}}
        for instead in (without, {**without, "patches_replace": {}}):
            with counted(self._anatomy) as ran:
                output = self._run(None, instead=instead)
            if len(ran) == self._anatomy.n_blocks:
                break
        return output

    def embedded(self, rows: Sequence[int] | None = None) -> Tensors | None:
        """What reaches the verification block when all blocks are skipped; None if it is not called once then.

        How a network joins its embedded inputs into its last stage is its own affair, so it is let do it. That takes a
        pass through what lies around the blocks; kept from the full run, a video's would stand beside its activations.
        """
        block, stage = self._anatomy.verification_block, self._anatomy.verification_stage
        arrived: list[Tensors] = []
        untouched = stage.untouched(block)

        def note(*args: Any, **kwargs: Any) -> Any:
            arrived.append(tuple(t.detach().clone() for t in stage.needed(block, args, kwargs)))
            return untouched(*args, **kwargs)

        with self._blocks_skipped(), exchanged_forward(block, note, stage.method):
            self._run(rows, skipping=True)
        return arrived[0] if len(arrived) == 1 else None

    def _blocks_skipped(self) -> AbstractContextManager[None]:
        return exchanged_forwards(self._anatomy.untouched)

    def speculate(self, features: Tensors, rows: Sequence[int] | None, on_embedded: Sequence[bool] = ()) -> Tensors:
        block, stage = self._anatomy.verification_block, self._anatomy.verification_stage
        verified = 0

        def run_on_forecast(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal verified
            verified += 1
            needed = stage.needed(block, args, kwargs)
            if [t.shape for t in needed] != [f.shape for f in features]:
                raise ForecastImpossibleError("shape_changed")
            forecast = tuple(_put_on(t, f, on_embedded) for f, t in zip(features, needed, strict=True))
            new_args, new_kwargs = stage.with_needed(block, args, kwargs, forecast)
            return native(*new_args, **new_kwargs)

        forward = functools.partial(run_on_forecast, stage.native(block))
        with ExitStack() as exchanged:
            exchanged.enter_context(self._blocks_skipped())
            exchanged.enter_context(exchanged_forward(block, forward, stage.method))
            self._called_in_draft = exchanged.enter_context(counted(self._anatomy))
            output = self._run(rows, skipping=True)
        if verified != 1:  # another pack's patch took the block out of this call, or runs it more than once
            raise ForecastImpossibleError("not_possible")
        return output

    def restore(self, output: Tensors) -> Any:
        """The session's tuple of tensors in the form in which the network returns its output."""
        return output[0] if self._output_type is None else self._output_type(output)

    def _run(
        self, rows: Sequence[int] | None, skipping: bool = False, instead: dict[str, Any] | None = None
    ) -> Tensors:
        """`instead`: of those `transformer_options`, with the network itself and not what it is compiled to."""
        args, kwargs = self._args, self._kwargs
        if skipping:  # what answers from what it kept, in the place of skipped blocks, may do so in place
            args = (copied(args[0]), *args[1:])
        if rows is not None:
            args = tuple(take_rows(a, rows, self._n_rows) for a in args)
            kwargs = {
                k: v if k == "transformer_options" else take_rows(v, rows, self._n_rows) for k, v in kwargs.items()
            }
        if "control" in kwargs:  # some networks empty its lists, and a rejected call runs the network twice
            kwargs = {**kwargs, "control": mapped(lambda tensor: tensor, kwargs["control"])}
        options = kwargs.get("transformer_options")
        if options is not None and (skipping or rows is not None or instead is not None):
            options = {**options, **(instead or {})}
            # Newer ComfyUI streams every block's weights ahead of the block loop; skipped blocks need none. The entry
            # stays: compiled blocks are guarded by which there are.
            if skipping and "prefetch_dynamic_vbars" in options:
                options["prefetch_dynamic_vbars"] = False
            sigmas = options.get("sigmas")
            if rows is not None and isinstance(sigmas, Tensor) and sigmas.ndim and sigmas.shape[0] > 1:
                options["sigmas"] = sigmas[sorted({row % sigmas.shape[0] for row in rows})]
            kwargs = {**kwargs, "transformer_options": options}
        as_is = not skipping and instead is None
        try:
            output = (self._forwards.full if as_is else self._forwards.skipping)(*args, **kwargs)
        except Exception as error:
            self.fault = None if skipping else error
            raise
        if isinstance(output, Tensor):
            return (output,)
        self._output_type = type(output)
        return tuple(output)


def _put_on(embedded: Tensor, forecast: Tensor, rows: Sequence[bool]) -> Tensor:
    """The forecast (R, ...) in the dtype of the embedded input; of those `rows`, on top of it."""
    forecast = forecast.to(embedded.dtype)
    if not any(rows):
        return forecast
    if all(rows):
        return forecast + embedded
    by_row = torch.tensor(list(rows), dtype=embedded.dtype, device=embedded.device)
    return torch.addcmul(forecast, by_row.view(-1, *[1] * (embedded.ndim - 1)), embedded)


def take_rows(value: Any, rows: Sequence[int], n_rows: int) -> Any:
    """`value` with every tensor of `n_rows` rows in it reduced to `rows`; containers are rebuilt, the rest is kept."""
    picked = list(rows)
    return mapped(lambda tensor: tensor[picked] if tensor.ndim and tensor.shape[0] == n_rows else tensor, value)


def copied(value: Any) -> Any:
    """`value` with every tensor in it cloned; containers are rebuilt, the rest is kept."""
    return mapped(torch.Tensor.clone, value)


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `function` of every tensor in it; dicts, lists and tuples are rebuilt, the rest is kept."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: mapped(function, v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(mapped(function, v) for v in value)
    return value
