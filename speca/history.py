"""The anchors of one stream: what full calls left behind, and how they are combined into a forecast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .call import Latent, Tensors
from .spectrum import Spectrum

# Elements combined at a time: bounds the fp32 working copy to 64 MB, whatever the length of a video.
CHUNK = 1 << 24


@dataclass(frozen=True)
class Anchor:
    """What one full call computed for one stream.

    `features` enter the verification block, `output` left the network; each tensor has a leading dimension of 1.
    `latent` entered it, where that is one tensor of the output's shape. `added` is what the blocks made of the embedded
    input, features less that; only a lone anchor needs it.
    """

    time: float
    features: Tensors
    output: Tensors
    latent: Latent | None = None
    added: Tensors | None = None

    def moved(self, place: Callable[[Tensor], Tensor]) -> Anchor:
        """The same where `place` puts each tensor."""
        latent = self.latent and replace(self.latent, x=place(self.latent.x))
        added = None if self.added is None else tuple(map(place, self.added))
        return Anchor(self.time, tuple(map(place, self.features)), tuple(map(place, self.output)), latent, added)

    def shown(self, device: torch.device) -> Tensor:
        """The denoised picture, (1, C, ...) in fp32, of an anchor with a latent."""
        assert self.latent is not None
        return self.latent.level.denoised(self.latent.x.to(device), self.output[0].to(device))

    @property
    def shapes(self) -> list[torch.Size]:
        """Of the features."""
        return [feature.shape for feature in self.features]

    @property
    def nbytes(self) -> int:
        latent = () if self.latent is None else (self.latent.x,)
        tensors = (*self.features, *self.output, *latent, *(self.added or ()))
        return sum(t.numel() * t.element_size() for t in tensors)


class History:
    """The newest `depth` anchors of a stream, oldest first, at distinct times.

    A sampler may call twice at one time (heun; schedules that repeat a sigma): the newer anchor takes the place of
    the older, since it belongs to the newer latent.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._anchors: list[Anchor] = []

    def __len__(self) -> int:
        return len(self._anchors)

    @property
    def times(self) -> list[float]:
        return [anchor.time for anchor in self._anchors]

    @property
    def nbytes(self) -> int:
        return sum(anchor.nbytes for anchor in self._anchors)

    @property
    def has_latents(self) -> bool:
        return all(anchor.latent is not None for anchor in self._anchors)

    @property
    def lone(self) -> Anchor | None:
        """The anchor, if there is only one."""
        return self._anchors[0] if len(self._anchors) == 1 else None

    def at(self, time: float | None) -> Anchor | None:
        """The newest anchor, if it is of this time."""
        newest = self._anchors[-1] if self._anchors else None
        return newest if newest is not None and newest.time == time else None

    def clear(self) -> None:
        self._anchors = []

    def move(self, place: Callable[[Tensor], Tensor]) -> None:
        """Everything to where `place` puts it, one anchor after the other."""
        anchors = self._anchors  # the stream's own thread may have others meanwhile
        for i, anchor in enumerate(anchors):
            anchors[i] = anchor.moved(place)

    def record(self, anchor: Anchor) -> None:
        """What has features of other shapes is dropped: nothing can be forecast from both. A network that keeps part
        of its tokens from its first call on has fewer in the others."""
        kept = [
            replace(old, added=None) for old in self._anchors if old.time != anchor.time and old.shapes == anchor.shapes
        ]
        self._anchors = [*kept, anchor][-self._depth :]

    def forecast_features(self, weights: Sequence[float], device: torch.device) -> Tensors:
        return _forecast([anchor.features for anchor in self._anchors], weights, device)

    def repeat_added(self, device: torch.device) -> Tensors:
        """What the blocks added to the embedded input at the lone anchor."""
        assert self.lone is not None
        assert self.lone.added is not None
        return _forecast([self.lone.added], [1.0], device)

    def forecast_output(self, weights: Sequence[float], device: torch.device) -> Tensors:
        return _forecast([anchor.output for anchor in self._anchors], weights, device)

    def forecast_output_from(
        self, latent: Latent | None, weights: Sequence[float], device: torch.device
    ) -> Tensors | None:
        """The output forecast in two parts: what follows from the latent alone, from this very call's, and the rest of
        it from the anchors (`spectrum.Spectrum`).

        None without a latent, or if an anchor has none to tell its own rest by.
        """
        newest = self._anchors[-1]
        weighed = [(weight, a) for weight, a in zip(weights, self._anchors, strict=True) if weight != 0.0]
        if latent is None or newest.latent is None or any(anchor.latent is None for _, anchor in weighed):
            return None
        shown = newest.shown(device)
        spectrum = Spectrum.of(shown) if self.lone is None else Spectrum.white(shown)
        rest = sum(
            weight * spectrum.rest(anchor.latent.level, anchor.latent.x, anchor.output[0])
            for weight, anchor in weighed
            if anchor.latent is not None
        )
        output = spectrum.output(latent.level, latent.x.to(device), torch.as_tensor(rest))
        return (output.to(newest.output[0].dtype),)

    def repeat_picture(self, latent: Latent | None, device: torch.device) -> Tensors | None:
        """The output that shows the newest anchor's picture for `latent`; None without a latent of either."""
        newest = self._anchors[-1]
        if latent is None or newest.latent is None:
            return None
        return (latent.level.output(latent.x.to(device), newest.shown(device)).to(newest.output[0].dtype),)


def _forecast(anchors: Sequence[Tensors], weights: Sequence[float], device: torch.device) -> Tensors:
    return tuple(combine(weights, tensors, device) for tensors in zip(*anchors, strict=True))


def combine(weights: Sequence[float], tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """sum_j weights[j] * tensors[j] on `device`, accumulated in fp32, in the last tensor's shape and dtype.

    Tensors kept on another device are brought over chunk by chunk, so no second copy of a video's features exists.
    A lone weight of 1 copies, so that plain reuse is exact in every dtype.
    """
    used = [(w, t) for w, t in zip(weights, tensors, strict=True) if w != 0.0]
    result = torch.empty_like(tensors[-1], device=device, memory_format=torch.contiguous_format)
    if len(used) == 1 and used[0][0] == 1.0:
        return result.copy_(used[0][1])
    flat_result = result.view(-1)
    flat = [(w, t.reshape(-1)) for w, t in used]
    for start in range(0, flat_result.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        total = torch.zeros_like(flat_result[part], dtype=torch.float32)
        for w, tensor in flat:
            total.add_(tensor[part].to(device, non_blocking=True), alpha=w)
        flat_result[part] = total
    return result
