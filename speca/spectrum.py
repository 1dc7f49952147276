"""What of a network's output follows from its latent alone, by the spectrum of the picture that it showed last. Pure.

Where a sampler adds fresh noise, the past does not know the latent. But much of what the network makes of it needs no
network: at a frequency at which pictures have the power S, the best linear denoiser shows
signal S / (signal^2 S + noise^2) of it (Wiener). Pictures are far from white: their coarse part is much stronger than
the noise when their detail is still drowned. So S is that of the denoised picture at the newest anchor, the mean power
of each ring of frequencies, channel by channel.

What a lone anchor shows at the start of a run is the mean of all that could be drawn, whose spectrum is no picture's.
There data count as white.

The same tells how the picture moves with a latent that is put right (`corrector`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .schedule import NoiseLevel

# Where transforms are known to work in every ComfyUI's torch; latents are small, so others have theirs on the CPU.
TRANSFORMS_ON = ("cpu", "cuda")


@dataclass(frozen=True)
class Spectrum:
    """Of pictures like one of (1, C, ...): the power of each frequency `rfftn` has, (1, C, ...), or one for all."""

    power: Tensor
    _sides: torch.Size
    _device: torch.device

    @classmethod
    def white(cls, picture: Tensor) -> Spectrum:
        """Of unit variance, for pictures of this shape."""
        device = picture.device if picture.device.type in TRANSFORMS_ON else torch.device("cpu")
        return cls(torch.ones((), device=device), _spatial(picture).shape[2:], device)

    @classmethod
    def of(cls, picture: Tensor) -> Spectrum:
        """Of what the picture itself has. Summed up on the CPU, where the order of sums is always the same."""
        white = cls.white(picture)
        square = white._frequencies(picture).abs().square().cpu()
        ring, members = _rings(white._sides)
        sums = square.new_zeros(*square.shape[:2], len(members)).index_add_(2, ring, square.flatten(2))
        power = (sums / members)[..., ring].view_as(square)
        return replace(white, power=power.to(white._device))

    def rest(self, level: NoiseLevel, x: Tensor, output: Tensor) -> Tensor:
        """What of an output does not follow from x, (1, C, ...) each, in lengths that are alike at all levels."""
        follows, spread = self._parts(level)
        return (self._frequencies(output) - follows * self._frequencies(x)) / spread

    def output(self, level: NoiseLevel, x: Tensor, rest: Tensor) -> Tensor:
        """The output, (1, C, ...) in fp32, that has this `rest`."""
        follows, spread = self._parts(level)
        return self._like(x, follows * self._frequencies(x) + spread * rest)

    def shown(self, level: NoiseLevel, x: Tensor) -> Tensor:
        """What of x, (1, C, ...), the best linear denoiser shows in its picture, (1, C, ...) in fp32."""
        return self._like(x, level.shows(self.power) * self._frequencies(x))

    def _like(self, x: Tensor, frequencies: Tensor) -> Tensor:
        back = torch.fft.irfftn(frequencies, s=self._sides, dim=_dims(frequencies), norm="ortho")
        return back.view(x.shape).to(x.device)

    def _parts(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(the share of x that shows in the output; the standard deviation of what it leaves open, over that of
        pictures), for each frequency."""
        total = level.signal**2 * self.power + level.noise**2
        return level.follows(self.power), level.noise / total.sqrt() / abs(level.output_gain)

    def _frequencies(self, picture: Tensor) -> Tensor:
        spatial = _spatial(picture.to(self._device)).float()
        return torch.fft.rfftn(spatial, dim=_dims(spatial), norm="ortho")


def _spatial(picture: Tensor) -> Tensor:
    """With at least one side: (1, C, ...)."""
    return picture if picture.ndim > 2 else picture.unsqueeze(1)


def _dims(spatial: Tensor) -> tuple[int, ...]:
    return tuple(range(2, spatial.ndim))


@functools.lru_cache(maxsize=8)
def _rings(sides: torch.Size) -> tuple[Tensor, Tensor]:
    """The ring of each frequency that `rfftn` has, one after the other: its length in cycles along the longest side,
    rounded. And how many each ring has."""
    axes = [torch.fft.fftfreq(side) for side in sides[:-1]]
    axes.append(torch.fft.rfftfreq(sides[-1]))
    grids = torch.meshgrid(*axes, indexing="ij")
    ring = (torch.stack(grids).norm(dim=0) * max(sides)).round().long().flatten()
    return ring, torch.bincount(ring)
