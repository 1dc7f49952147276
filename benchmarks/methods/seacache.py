"""SeaCache: "Spectral-Evolution-Aware Cache for Accelerating Diffusion Models", arXiv 2602.18993.

TeaCache's rule on features behind the paper's spectral-evolution-aware filter. The modulated input of the first block
goes through the optimal linear denoiser of a signal whose power falls as |f|^-beta: H = a S / (a^2 S + b^2) along each
axis, a and b the shares of signal and noise in the call's latent, the product of the axes scaled to a mean of 1. The
relative L1 distance between this call's filtered features and the last one's is added up; once the sum reaches a
threshold the call is computed and the sum begins anew, else what the blocks added at the newest full call is added to
this call's embedded input. The first and the last call are computed.

As in the released code (jiwoogit/SeaCache, `util_seacache.py`): beta is 2 on pictures and 3 on clips. Different here:
the threshold is chosen for a speed, as a person would, from the distances on two other samples (not counted as cost;
what a sample costs is counted as it comes). The features are those that reach the first block's attention.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from measure.sampling import Batch, Case, sample
from measure.subjects import Subject
from speca.adapters.base import Anatomy, exchanged_forward

from .at_speed import AtSpeed, at_speeds
from .attachment import NetworkRun, RunLog, attach_run, run_of, stream_of
from .base import Method, Run
from .calibration import Mixture, key_of, others
from .forecasting import Combined
from .levels import Features, StackResiduals, blocks_of

BETA_OF_PICTURES, BETA_OF_CLIPS = 2.0, 3.0
LEAST_SHARE = 1e-6
CALIBRATION_SAMPLES = 2

FIRST_ATTENTION = {
    "DoubleStreamBlock": "img_attn.qkv",
    "DiTBlock": "attn",
    "HunYuanDiTBlock": "attn1",
    "PixArtMSBlock": "attn",
    "WanAttentionBlock": "self_attn",
    "QwenImageTransformerBlock": "attn",
    "JointTransformerBlock": "attention",
    "GeneralDITTransformerBlock": "blocks.0.block",
    "BasicTransformerBlock": "attn1",
    "MMDiTBlock": "attn.w2q",  # the picture's; the attention itself is given the text first
    "Block": "self_attn",
}
"""By the class of a network's first block: the module that is given its modulated input."""


# --- The filtered distance --------------------------------------------------------------------------------------------


def gain(n: int, a: float, b: float, beta: float) -> Tensor:
    """(n,): the Wiener filter along one axis of n places, by frequency in cycles a place, as `torch.fft.fftfreq`."""
    signal = 1.0 / (torch.fft.fftfreq(n).abs() ** beta + 1e-16)
    return a * signal / (a * a * signal + b * b + 1e-16)


def filtered(grid: Tensor, a: float, b: float, beta: float) -> Tensor:
    """(B, ..., D) with places in between, through the product of their axes' filters, which has a mean of 1."""
    axes = range(1, grid.ndim - 1)
    whole = torch.ones([1] * grid.ndim)
    for axis in axes:
        shape = [1] * grid.ndim
        shape[axis] = -1
        whole = whole * gain(grid.shape[axis], a, b, beta).view(shape)
    whole = (whole / whole.mean()).to(grid.device)
    spectrum = torch.fft.fftn(grid.float(), dim=tuple(axes))
    return torch.fft.ifftn(spectrum * whole, dim=tuple(axes)).real


def distance(new: Tensor, old: Tensor) -> float:
    """mean |new - old| / mean |old|."""
    return float((new - old).abs().mean() / (old.abs().mean() + 1e-16))


class _SeenError(Exception):
    """Ends a block's forward once its modulated input is known."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens


def modulated_input(block: nn.Module, args: Any, kwargs: Any) -> Tensor:
    """What the first block gives its attention; nothing else of the block runs. Raises ValueError for a block that is
    not in `FIRST_ATTENTION`."""
    path = FIRST_ATTENTION.get(type(block).__name__)
    if path is None:
        raise ValueError(f"SeaCache does not know what {type(block).__name__} gives its attention")

    def see(*args: Any, **kwargs: Any) -> Any:
        raise _SeenError(args[0] if args else kwargs["hidden_states"])

    with exchanged_forward(block.get_submodule(path), see):
        try:
            type(block).forward(block, *args, **kwargs)
        except _SeenError as seen:
            return seen.tokens
    raise ValueError(f"{type(block).__name__} does not call its {path}")


def as_grid(tokens: Tensor, places: Sequence[int], network: nn.Module) -> Tensor:
    """The picture's tokens, (B, [T,] H, W, D), places being those of the latent; text before them is left out."""
    if tokens.ndim == 5:  # Cosmos: (T, H, W, B, D)
        return tokens.movedim(3, 0)
    cut_by = getattr(network, "patchifier", network)  # LTX-Video has one
    patch = getattr(cut_by, "patch_size", None) or (network.patch_temporal, *[network.patch_spatial] * 2)
    patches = [patch] * 2 if isinstance(patch, int) else list(patch)
    patches = [1] * (len(places) - len(patches)) + patches
    sides = [math.ceil(n / p) for n, p in zip(places, patches, strict=True)]
    return tokens[:, -math.prod(sides) :].unflatten(1, sides)


# --- A run ------------------------------------------------------------------------------------------------------------


class Accumulated:
    """TeaCache's rule: compute once the distances since the last full call reach the threshold."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._sum = 0.0

    def computes(self, call: int, n_calls: int, new_distance: float) -> bool:
        self._sum += new_distance
        if 0 < call < n_calls - 1 and self._sum < self._threshold:
            return False
        self._sum = 0.0
        return True


class _Stream:
    def __init__(self, threshold: float) -> None:
        self.calls = 0
        self.rule = Accumulated(threshold)
        self.seen: Tensor | None = None
        self.residuals: dict[str, Combined] = {}


class _SeaRun(NetworkRun):
    def __init__(self, threshold: float, n_calls: int, distances: list[float], log: RunLog) -> None:
        super().__init__()
        self._threshold = threshold
        self._n_calls = n_calls
        self._distances = distances
        self._log = log
        self._streams: dict[Any, _Stream] = {}
        self._shares = (1.0, 0.0)
        self._network: Any = None

    def apply(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        mixture = Mixture.at(executor.class_obj.model_sampling, args[1])
        self._shares = max(mixture.signal, LEAST_SHARE), max(mixture.noise, LEAST_SHARE)
        self._network = executor.class_obj.diffusion_model
        return super().apply(executor, *args, **kwargs)

    def forward(self, anatomy: Anatomy, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        key = stream_of(kwargs.get("transformer_options", {}))
        stream = self._streams.setdefault(key, _Stream(self._threshold))
        call = stream.calls
        stream.calls += 1
        level = StackResiduals()
        into: Features = {}
        _, first = blocks_of(anatomy)[0]
        with ExitStack() as stack:

            def decide(before: Callable[..., Any], *block_args: Any, **block_kwargs: Any) -> Any:
                """In the place of the first block: only here is the embedded input known."""
                own_args = [a.clone() if isinstance(a, Tensor) else a for a in block_args]  # blocks work in place
                own_kwargs = {k: v.clone() if isinstance(v, Tensor) else v for k, v in block_kwargs.items()}
                grid = as_grid(modulated_input(first, own_args, own_kwargs), args[0].shape[2:], self._network)
                full = self._computes(stream, call, grid)
                self._log.decisions.append("full" if full else "forecast")
                stack.enter_context(exchanged_forward(first, before))
                if full:
                    level.capture(anatomy, into, stack)
                else:
                    level.replay(anatomy, lambda name: stream.residuals[name].forecast(call), stack)
                return first.forward(*block_args, **block_kwargs)

            stack.enter_context(exchanged_forward(first, functools.partial(decide, first.forward)))
            output = native(*args, **kwargs)
        for name, residual in into.items():
            stream.residuals.setdefault(name, Combined(lambda times, at: [1.0], depth=1)).record(call, residual)
        held = sum(r.nbytes for s in self._streams.values() for r in s.residuals.values())
        self._log.cache_bytes = max(self._log.cache_bytes, held)
        return output

    def _computes(self, stream: _Stream, call: int, grid: Tensor) -> bool:
        beta = BETA_OF_PICTURES if grid.ndim == 4 or grid.shape[1] == 1 else BETA_OF_CLIPS
        new = filtered(grid, *self._shares, beta)
        moved = 0.0 if stream.seen is None else distance(new, stream.seen)
        stream.seen = new
        self._distances.append(moved)
        return stream.rule.computes(call, self._n_calls, moved)


def threshold_for(distances: Sequence[Sequence[float]], k: float) -> float:
    """The threshold at which the rule computes `k` calls of these runs, on the mean; to the nearest."""

    def computed(threshold: float) -> float:
        counts = []
        for run in distances:
            rule = Accumulated(threshold)
            counts.append(sum(rule.computes(call, len(run), moved) for call, moved in enumerate(run)))
        return sum(counts) / len(counts)

    low, high = 0.0, max(sum(run) for run in distances) + 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if computed(middle) > k else (low, middle)
    return min((low, high), key=lambda threshold: abs(computed(threshold) - k))


_DISTANCES: dict[object, list[list[float]]] = {}


def distances_of(subject: Subject, case: Case, native: int) -> list[list[float]]:
    """Of uncached runs of other samples, call by call."""
    key = key_of(subject, case)
    if key not in _DISTANCES:
        _DISTANCES[key] = []
        for single in others(subject, CALIBRATION_SAMPLES).singles():
            found: list[float] = []
            patched, _ = attach_run(subject.patcher, lambda sigmas, log, found=found: _SeaRun(0.0, native, found, log))
            sample(patched, subject, case, single)
            streams = len(found) // native  # conditionings that come one after the other are called in turn
            _DISTANCES[key] += [found[i::streams] for i in range(streams)]
    return _DISTANCES[key]


class SeaCache(AtSpeed):
    """The threshold that leads to a speed on other samples."""

    family = "SeaCache"
    one_by_one = True

    def run(self, subject: Subject, case: Case, batch: Batch, native: int) -> Run:
        threshold = threshold_for(distances_of(subject, case, native), native / self.speed)
        patched, log = attach_run(subject.patcher, lambda sigmas, log: _SeaRun(threshold, native, [], log))
        return run_of(sample(patched, subject, case, batch), log, native)


METHODS = (Method("seacache", "SeaCache", at_speeds(SeaCache)),)
