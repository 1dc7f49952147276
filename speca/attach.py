"""Attaches SpeCa to a ComfyUI model: wrappers for a run and for each call, and nothing that outlives them.

Two of ComfyUI's wrappers are used (`comfy/patcher_extension.py`). OUTER_SAMPLE encloses one sampling run: the
session is made there and dropped in `finally`. APPLY_MODEL encloses each call, on the very instance of the model that
is called: there the forward of the network and of its blocks is exchanged for the length of the call, and put back.
Exchanging beats `patches_replace`, which half of the architectures lack, and leaves other packs' patches in force:
what they wrap around a block wraps a skipped block as well, and what they add before the verification block is in
the features that were kept.
"""

from __future__ import annotations

import bisect
import functools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from .adapters import NotThisArchitectureError, recognise
from .adapters.base import Anatomy, BlockList, exchanged_forward, exchanged_forwards, is_batched
from .adapters.generic import prove
from .call import Call, Exact, ForecastImpossibleError, Latent, Tensors
from .config import SpeCaConfig
from .events import Listener, Origin, RunHeader, RunRecord, Status
from .path import SamplingPath
from .session import Session

__all__ = ["Attachment", "attach", "attachment_of"]

KEY = "speca"
RUNS_KEPT = 8

# Wrappers of other caches, by the key they register under. Two caches on one model would forecast from forecasts.
OTHER_CACHES = {"easycache": "EasyCache", "lazycache": "LazyCache"}

# The share of free memory that anchors may take before "auto" keeps them in system memory.
AUTO_SHARE_OF_FREE_MEMORY = 0.25


def attach(
    model: comfy.model_patcher.ModelPatcher,
    config: SpeCaConfig,
    listener: Listener | None = None,
    origin: Callable[[], Origin] = Origin,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of `model` that samples with SpeCa. `model` itself is not changed, nor are its weights.

    A SpeCa that is attached already is replaced, so the node nearest the sampler wins. A network without an adapter
    is passed through: its runs are native and say so.
    """
    patched = model.clone()
    attachment = Attachment(config, listener, origin)
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.APPLY_MODEL):
        patched.remove_wrappers_with_key(kind, KEY)
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, attachment.sample)
    try:
        recognise(patched.model.diffusion_model)
    except NotThisArchitectureError:
        pass  # said once per run, in the run's own line
    else:
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, attachment.predict_noise)
        patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, attachment.apply_model)
    patched.set_attachments(KEY, attachment)
    return patched


def attachment_of(model: comfy.model_patcher.ModelPatcher) -> Attachment | None:
    """SpeCa's attachment on `model`, or None if no SpeCa node is upstream."""
    return model.get_attachment(KEY)


class Attachment:
    """What rides on a patched model: the settings, and the records of its last runs. No state of a run is in here."""

    def __init__(self, config: SpeCaConfig, listener: Listener | None, origin: Callable[[], Origin]) -> None:
        self.config = config
        self._listener = listener
        self._origin = origin
        self._runs: deque[tuple[RunRecord, tuple[Any, ...]]] = deque(maxlen=RUNS_KEPT)

    def run_of(self, samples: Tensor | None = None) -> RunRecord | None:
        """The record of the run that made the latent `samples`; without a match, of the last run. None before any."""
        wanted = None if samples is None else _fingerprint(samples)
        for record, fingerprint in reversed(self._runs):
            if fingerprint == wanted:
                return record
        return self._runs[-1][0] if self._runs else None

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """OUTER_SAMPLE wrapper: `args` start with noise, latent image, sampler, sigmas (`CFGGuider.sample`)."""
        guider = executor.class_obj
        noise, _, sampler, sigmas = args[:4]
        session = self._open(guider, noise, sampler, sigmas)
        unchanged = guider.model_options
        status: Status = "failed"
        result = None
        try:
            guider.model_options = comfy.model_patcher.create_model_options_clone(unchanged)
            options = guider.model_options.setdefault("transformer_options", {})
            path = SamplingPath(guider.model_patcher.get_model_object("model_sampling"), sigmas.tolist())
            options[KEY] = _Run(session, path, sigmas.tolist())
            _call_innermost(options)
            result = executor(*args, **kwargs)
            status = "finished"
            return result
        except comfy.model_management.InterruptProcessingException:
            status = "interrupted"
            raise
        finally:
            guider.model_options = unchanged
            record = session.close(status)
            self._runs.append((record, _fingerprint(result)))

    def _open(self, guider: Any, noise: Tensor, sampler: Any, sigmas: Tensor) -> Session:
        model = guider.model_patcher.model
        device = guider.model_patcher.load_device
        steps = max(len(sigmas) - 1, 0)
        architecture, experimental, n_blocks, native = None, False, 0, None
        config = self.config
        try:
            anatomy = recognise(uncompiled(model.diffusion_model))
        except NotThisArchitectureError as missing:
            native = str(missing)
        else:
            architecture, experimental = anatomy.architecture.name, anatomy.architecture.experimental
            n_blocks = anatomy.n_blocks
            config = config.for_architecture(anatomy.architecture.noise_gain_limit)
            native = self._reason_to_stay_native(guider, steps)
        header = RunHeader(
            settings=config.to_json(),
            model=type(model).__name__,
            architecture=architecture,
            experimental=experimental,
            n_blocks=n_blocks,
            steps=steps,
            sampler=_sampler_name(sampler),
            n_samples=noise.shape[0],
            origin=self._origin(),
            native=native,
        )
        return Session(config, header, self._listener, _Placement(self.config, device), _clock(device))

    def _reason_to_stay_native(self, guider: Any, steps: int) -> str | None:
        wrappers = guider.model_options.get("transformer_options", {}).get("wrappers", {})
        keys = {key for by_key in wrappers.values() for key in by_key}
        for key, name in OTHER_CACHES.items():
            if key in keys:
                return f"{name} is on this model too; remove one of the two nodes. This run is left to {name}"
        warm_up = self.config.warmup_steps
        if self.config.threshold > 0 and steps < warm_up + 2:
            return (
                f"{steps} steps are too few for {warm_up} warm-up step{'' if warm_up == 1 else 's'} and a forecast "
                f"between two computed ones (at least {warm_up + 2}); it runs uncached"
            )
        return None

    def predict_noise(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """PREDICT_NOISE wrapper: `args` are x, timestep, model_options, seed (`CFGGuider.predict_noise`)."""
        options = args[2] if len(args) > 2 else kwargs.get("model_options", {})
        run: _Run | None = options.get("transformer_options", {}).get(KEY)
        if run is None or run.session.tally.header.native is not None or not isinstance(args[0], Tensor):
            return executor(*args, **kwargs)
        x, sigma = args[0], float(args[1].flatten()[0])
        run.path.arrive(x, sigma)
        denoised = executor(*args, **kwargs)
        run.path.leave(x, sigma, denoised)
        return denoised

    def apply_model(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """APPLY_MODEL wrapper (comfy/model_base.py): exchanges the network's forward for one call."""
        options = args[5] if len(args) > 5 else kwargs.get("transformer_options", {})
        run: _Run | None = options.get(KEY)
        if run is None or run.session.tally.header.native is not None:
            return executor(*args, **kwargs)
        model = executor.class_obj
        network = model.diffusion_model
        try:
            anatomy = run.anatomy_of(network)
        except NotThisArchitectureError as missing:
            run.session.tally.go_native(str(missing))
            return executor(*args, **kwargs)
        with exchanged_forward(network, functools.partial(run.forward, model, args[0], anatomy, _Forwards.of(network))):
            return executor(*args, **kwargs)


@dataclass(frozen=True)
class _Forwards:
    """How a network is run in full, and how with skipped blocks. They differ for a network compiled as a whole
    (TorchCompileModel): a compiled graph cannot skip, so speculated calls, which run one block, are not compiled."""

    full: Callable[..., Any]
    skipping: Callable[..., Any]
    compiled: bool

    @classmethod
    def of(cls, network: nn.Module) -> _Forwards:
        plain = uncompiled(network)
        return cls(network.forward, plain.forward, plain is not network)


class _Run:
    """Lies in `transformer_options` for one sampling run: turns the network's calls into the session's."""

    def __init__(self, session: Session, path: SamplingPath, sigmas: list[float]) -> None:
        self.session = session
        self.path = path
        self._sigmas = sigmas
        self._anatomies: dict[int, tuple[nn.Module, Anatomy]] = {}
        self._entries: dict[Hashable, _Entry] = defaultdict(_Entry)

    def anatomy_of(self, network: nn.Module) -> Anatomy:
        """Found once a run for each network: several devices have a copy each. Raises NotThisArchitectureError."""
        if id(network) not in self._anatomies:  # the entry keeps the network alive, and with it the id
            self._anatomies[id(network)] = network, recognise(uncompiled(network))
        return self._anatomies[id(network)][1]

    def forward(self, model: Any, latent: Any, anatomy: Anatomy, forwards: _Forwards, *args: Any, **kwargs: Any) -> Any:
        """Stands in for `diffusion_model.forward(x, timestep, ...)` during one call; `latent` is the sampler's x."""
        try:
            call, splittable = self._describe(model, latent, args, kwargs)
            if anatomy.architecture.experimental and self.session.config.threshold > 0:
                anatomy = _proved(model, anatomy, forwards, args, kwargs, len(call.streams))
                splittable = False  # how the network treats the rows of a batch is not known
        except ForecastImpossibleError as refused:
            self.session.tally.go_native(f"this call cannot be cached ({refused}); the run is computed natively")
            return forwards.full(*args, **kwargs)
        except NotThisArchitectureError as missing:
            self.session.tally.go_native(str(missing))
            return forwards.full(*args, **kwargs)
        added_to = kwargs.get("control") is not None or _patch_signature(kwargs.get("transformer_options", {}))
        entry = _Entry(False) if added_to or forwards.compiled else self._entries[call.kind]
        network = _BoundNetwork(anatomy, forwards, args, kwargs, len(call.streams), splittable, entry)
        return network.restore(self.session.evaluate(call, network))

    def _describe(self, model: Any, latent_in: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, bool]:
        options = kwargs.get("transformer_options", {})
        x = args[0]
        latent = x[0] if isinstance(x, (list, tuple)) else x
        conds = tuple(options.get("cond_or_uncond", (0,)))
        rows = latent.shape[0]
        if rows % len(conds):
            raise ForecastImpossibleError(f"{rows} rows do not divide into {len(conds)} conditionings")
        n_samples = rows // len(conds)
        sigma_tensor = options.get("sigmas")
        if sigma_tensor is None:
            raise ForecastImpossibleError("the sampler gives no sigma")
        sigma = float(sigma_tensor.flatten()[0])
        step, progress = _position(self._sigmas, sigma)
        window = options.get("context_window")
        window_key = None if window is None else tuple(getattr(window, "index_list", ()))
        patches = _patch_signature(options)
        hooks = _hook_signature(model)
        uuids = options.get("uuids") or conds
        chunks = [(str(uuid), window_key, patches, hooks) for uuid in uuids]
        streams = tuple((chunks[row // n_samples], row % n_samples) for row in range(rows))
        level = self.path.level(sigma)
        call = Call(
            time=float(model.model_sampling.timestep(sigma_tensor.flatten()[:1]).float()),
            sigma=sigma,
            step=step,
            progress=progress,
            n_samples=n_samples,
            streams=streams,
            conds=conds,
            kind=(conds, tuple(latent.shape), patches),
            window=window_key[0] if window_key else None,
            weight=self.path.weight(step),
            latent=Latent(latent_in, level.carry, level.spread)
            if level is not None and isinstance(latent_in, Tensor) and latent_in.shape[0] == rows
            else None,
            renoised=self.path.renoised and level is not None,
        )
        # Other packs' patches may hold tensors for this very batch: then it is never taken apart.
        return call, n_samples > 1 and not patches


def _proved(
    model: Any, proposed: Anatomy, forwards: _Forwards, args: tuple[Any, ...], kwargs: dict[str, Any], n_rows: int
) -> Anatomy:
    """The anatomy of a network found by its structure, tried out on a copy of this call's inputs."""

    def bind(anatomy: Anatomy) -> _BoundNetwork:
        own_args = tuple(copied(a) for a in args)
        own_kwargs = {k: v if k == "transformer_options" else copied(v) for k, v in kwargs.items()}
        return _BoundNetwork(anatomy, forwards, own_args, own_kwargs, n_rows, False, _Entry(False))

    return prove(uncompiled(model.diffusion_model), proposed, bind)


@dataclass
class _Entry:
    """Whether what enters a network's first block is what reaches its last one when all blocks are skipped.

    It is where there is one list of blocks and nothing is added on the way. None until it was seen in one call.
    """

    is_embedded: bool | None = None


class _BoundNetwork:
    """`session.Network` over one call of a ComfyUI network."""

    def __init__(
        self,
        anatomy: Anatomy,
        forwards: _Forwards,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        n_rows: int,
        splittable: bool,
        entry: _Entry,
    ) -> None:
        self._anatomy = anatomy
        self._forwards = forwards
        self._args = args
        self._kwargs = kwargs
        self._n_rows = n_rows
        self._entry = entry
        self.splittable = splittable
        x = args[0]
        self.device = (x[0] if isinstance(x, (list, tuple)) else x).device
        self._output_type: type | None = None

    def full(self, rows: Sequence[int] | None, keep_features: bool, keep_embedded: bool = False) -> Exact:
        first_stage, first = self._anatomy.skipped[0]
        block, stage = self._anatomy.verification_block, self._anatomy.verification_stage
        entering: list[Tensors | None] = []
        kept: list[Tensors | None] = []
        n_rows = self._n_rows if rows is None else len(rows)

        def copies(stage: BlockList, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensors | None:
            needed = stage.needed(block, args, kwargs)
            if not is_batched(needed, n_rows):
                return None
            return tuple(t.detach().clone() for t in needed)  # blocks work in place

        def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering.append(copies(first_stage, first, args, kwargs))

        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.append(copies(stage, block, args, kwargs))

        def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if kept:  # what runs after the verification block cannot be skipped
                kept.append(None)

        with ExitStack() as stack:
            if keep_embedded and self._entry.is_embedded is not False:
                stack.enter_context(_tapped(first, enter, self._forwards.compiled))
            if keep_features:
                stack.enter_context(_tapped(block, keep, self._forwards.compiled))
                for _, helper in self._anatomy.helpers:
                    stack.enter_context(_tapped(helper, note, self._forwards.compiled))
            output = self._run(rows)
        features = kept[0] if len(kept) == 1 else None
        embedded = None
        if features is not None and keep_embedded:
            embedded = self._embedded(rows, entering[0] if len(entering) == 1 else None)
        if features is None or embedded is None or [t.shape for t in embedded] != [f.shape for f in features]:
            return Exact(features, output)
        return Exact(features, output, embedded)

    def _embedded(self, rows: Sequence[int] | None, entering: Tensors | None) -> Tensors | None:
        """What reaches the verification block when all blocks are skipped; `entering` is what entered the first one.

        How a network joins its embedded inputs into its last stage is its own affair, so it is let do it, unless it was
        seen to do nothing.
        """
        block, stage = self._anatomy.verification_block, self._anatomy.verification_stage
        if entering is not None and self._entry.is_embedded:
            return entering
        arrived: list[Tensors] = []
        untouched = stage.untouched(block)

        def note(*args: Any, **kwargs: Any) -> Any:
            arrived.append(tuple(t.detach().clone() for t in stage.needed(block, args, kwargs)))
            return untouched(*args, **kwargs)

        with self._blocks_skipped(), exchanged_forward(block, note):
            self._run(rows, skipping=True)
        if len(arrived) != 1:
            return None
        if entering is not None:
            same_shapes = [t.shape for t in entering] == [t.shape for t in arrived[0]]
            self._entry.is_embedded = same_shapes and all(map(torch.equal, entering, arrived[0]))
        return arrived[0]

    def _blocks_skipped(self) -> AbstractContextManager[None]:
        return exchanged_forwards(self._anatomy.untouched)

    def speculate(self, features: Tensors, rows: Sequence[int] | None, own_shares: Sequence[float] = ()) -> Tensors:
        block, stage = self._anatomy.verification_block, self._anatomy.verification_stage
        verified = 0

        def run_on_forecast(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal verified
            verified += 1
            needed = stage.needed(block, args, kwargs)
            if [t.shape for t in needed] != [f.shape for f in features]:
                raise ForecastImpossibleError("shape_changed")
            forecast = tuple(_on_embedded(f, t, own_shares) for f, t in zip(features, needed, strict=True))
            new_args, new_kwargs = stage.with_needed(block, args, kwargs, forecast)
            return native(*new_args, **new_kwargs)

        native = block.forward
        with self._blocks_skipped(), exchanged_forward(block, functools.partial(run_on_forecast, native)):
            output = self._run(rows, skipping=True)
        if verified != 1:  # another pack's patch took the block out of this call, or runs it more than once
            raise ForecastImpossibleError("not_possible")
        return output

    def restore(self, output: Tensors) -> Any:
        """The session's tuple of tensors in the form in which the network returns its output."""
        return output[0] if self._output_type is None else self._output_type(output)

    def _run(self, rows: Sequence[int] | None, skipping: bool = False) -> Tensors:
        args, kwargs = self._args, self._kwargs
        if rows is not None:
            args = tuple(take_rows(a, rows, self._n_rows) for a in args)
            kwargs = {
                k: v if k == "transformer_options" else take_rows(v, rows, self._n_rows) for k, v in kwargs.items()
            }
        if "control" in kwargs:  # some networks empty its lists, and a rejected call runs the network twice
            kwargs = {**kwargs, "control": mapped(lambda tensor: tensor, kwargs["control"])}
        options = kwargs.get("transformer_options")
        if options is not None and (skipping or rows is not None):
            options = dict(options)
            if skipping:
                # Newer ComfyUI streams every block's weights ahead of the block loop; skipped blocks need none.
                options.pop("prefetch_dynamic_vbars", None)
            sigmas = options.get("sigmas")
            if rows is not None and isinstance(sigmas, Tensor) and sigmas.ndim and sigmas.shape[0] > 1:
                options["sigmas"] = sigmas[sorted({row % sigmas.shape[0] for row in rows})]
            kwargs = {**kwargs, "transformer_options": options}
        output = (self._forwards.skipping if skipping else self._forwards.full)(*args, **kwargs)
        if isinstance(output, Tensor):
            return (output,)
        self._output_type = type(output)
        return tuple(output)


def _on_embedded(forecast: Tensor, embedded: Tensor, shares: Sequence[float]) -> Tensor:
    """The forecast (R, ...) in the dtype of the embedded input, on top of each row's share of that."""
    forecast = forecast.to(embedded.dtype)
    if not any(shares):
        return forecast
    if len(set(shares)) == 1:
        return torch.add(forecast, embedded, alpha=shares[0])
    by_row = torch.tensor(shares, dtype=embedded.dtype, device=embedded.device)
    return torch.addcmul(forecast, by_row.view(-1, *[1] * (embedded.ndim - 1)), embedded)


def uncompiled(network: nn.Module) -> nn.Module:
    """The network itself, out of the module that `torch.compile` puts around it."""
    return getattr(network, "_orig_mod", network)


Keep = Callable[[tuple[Any, ...], dict[str, Any]], None]


class _Tap:
    """Shows a block's inputs to `keep` before the block runs.

    A compiled graph is kept for later calls, and with it what it was traced with. For such a block the tap is one
    object for good, run outside the graph: a later call finds it there with that call's `keep`, or with none. Should a
    graph be reused that was traced without it, nothing is kept, and without anchors every call is computed in full.
    """

    def __init__(self, block: nn.Module) -> None:
        self.native: Callable[..., Any] = functools.partial(type(block).forward, block)
        self.keep: Keep | None = None
        self.outside_graphs = torch.compiler.disable(self.__call__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.keep is not None:
            self.keep(args, kwargs)
        return self.native(*args, **kwargs)


@contextmanager
def _tapped(block: nn.Module, keep: Keep, compiled: bool) -> Iterator[None]:
    tap = block.__dict__.setdefault(f"_{KEY}_tap", _Tap(block)) if compiled else _Tap(block)
    unchanged = tap.native
    tap.native, tap.keep = block.forward, keep
    try:
        with exchanged_forward(block, tap.outside_graphs if compiled else tap):
            yield
    finally:
        tap.native, tap.keep = unchanged, None


def _call_innermost(options: dict[str, Any]) -> None:
    """Put SpeCa's APPLY_MODEL wrapper last in this run's options, so that it runs inside those that exchange the
    network (TorchCompileModel), in whatever order the nodes were connected."""
    wrappers = options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    if KEY in wrappers:
        wrappers[KEY] = wrappers.pop(KEY)


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


class _Placement:
    """Decides once per run where anchors are kept, and moves them there."""

    def __init__(self, config: SpeCaConfig, device: torch.device) -> None:
        self._choice = config.cache_device
        self._device = device
        self._anchors = config.order + 1

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu" or self._choice == "gpu":
            return tensor
        if self._choice == "auto":
            # Cond and uncond, each with all its anchors: the usual most that will be kept.
            expected = 2 * self._anchors * tensor.numel() * tensor.element_size()
            free = comfy.model_management.get_free_memory(tensor.device)
            self._choice = "gpu" if expected <= AUTO_SHARE_OF_FREE_MEMORY * free else "cpu"
            if self._choice == "gpu":
                return tensor
        return tensor.to("cpu")


def _clock(device: torch.device) -> Callable[[], float]:
    def waiting() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return waiting if device.type == "cuda" else time.perf_counter


def _position(sigmas: Sequence[float], sigma: float) -> tuple[int, float]:
    """(step, progress): the schedule's interval that `sigma` falls in, and its place in the run from 0 to 1.

    A sampler may ask between two sigmas of the schedule. A sigma that is repeated counts from its last place.
    """
    steps = len(sigmas) - 1
    if steps < 1:
        return 0, 0.0
    ascending = [-s for s in sigmas]
    after = bisect.bisect_right(ascending, -sigma * (1 - 1e-5) + 1e-9)
    step = min(max(after - 1, 0), steps - 1)
    gap = sigmas[step] - sigmas[step + 1]
    fraction = (sigmas[step] - sigma) / gap if gap > 0 else 0.0
    return step, min(max((step + fraction) / steps, 0.0), 1.0)


def _patch_signature(options: dict[str, Any]) -> tuple[str, ...]:
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


def _sampler_name(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")


def _fingerprint(latent: Any) -> tuple[Any, ...]:
    """Tells one run's latent from another's, on whatever device and in whatever dtype it arrives at the report."""
    if not isinstance(latent, Tensor):
        return (None,)
    values = latent.detach().to("cpu", torch.float64)
    return (tuple(latent.shape), round(float(values.sum()), 4), round(float(values.abs().sum()), 4))
