"""What forecasts led astray, a computed call puts right: the corrector of a predictor-corrector method. Pure.

Each accepted forecast moves the latent by its error, and nobody knows that error until the next computed call. Then the
network's outputs at both ends of the gap are known, and what lies between them is told far better by the line that
joins them than by the curve that went on from the first. The difference, step by step, is how far the latent strayed.

The computed call hands it back: its output is moved so that the sampler's step ends where it would have ended from the
latent put right. The picture that the network showed goes with it, as far as the best linear denoiser of such pictures
would let it (`spectrum.Spectrum.shown`): not at all where noise is all, wholly where there is none, so that what is
astray at the last call is put right in the picture itself. What later forecasts start from is the output that shows
that picture from the latent put right. As in UniPC (arXiv 2302.04867, UniC) no call is spent on it; without it
eleven models of the zoo lose 2.2 dB, ten of them 0.3 to 4.7 (benchmarks/results/ablation.md).

All this is known of samplers whose step is Euler's (`path.SamplingPath.ahead`), where x' = r x + (1 - r) D for the
denoised picture D = latent_gain * x + output_gain * F and r = sigma' / sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .call import Call, Tensors
from .schedule import NoiseLevel
from .spectrum import Spectrum


@dataclass(frozen=True)
class Astray:
    """How far a latent has to be moved to be right, and how far the picture that the network shows for it moves then:
    (1, C, ...) each, in fp32."""

    latent: Tensor
    picture: Tensor

    @classmethod
    def of(cls, level: NoiseLevel, x: Tensor, output: Tensor, moved: Tensor) -> Astray:
        """Of a latent x for which the network gives this output, (1, C, ...) each, and which is to be moved by `moved`.

        The picture follows as it would that of the best linear denoiser of pictures like the one shown.
        """
        shown = level.denoised(x.detach(), output.detach())
        return cls(moved, Spectrum.of(shown).shown(level, moved))


@dataclass
class Corrector:
    """Of one stream, from one computed call to the next.

    since: the time of the computed call; None where track of the latent was lost.
    `_end` is the sigma at which the last call's step ends. `_moved` is what all forecasts since have made of the
    latent, (1, C, ...) in fp32; `_all` and `_late` are the same sums for an output of 1, and for one that grows from 0
    by 1 per unit of time.
    """

    since: float | None = None
    _end: float | None = None
    _moved: Tensor | None = None
    _all: float = 0.0
    _late: float = 0.0

    def computed(self, call: Call) -> None:
        """A computed call begins a new gap."""
        self.since, self._end, self._moved, self._all, self._late = call.time, call.ahead, None, 0.0, 0.0

    def accepted(self, call: Call, output: Tensor) -> None:
        """A forecast, (1, C, ...), was handed to the sampler."""
        step, late = self._step_of(call), self._since(call)
        if step is None or late is None:
            self.lose_track()
            return
        moved = output.float() * step.gain
        self._moved = moved if self._moved is None else self._moved.mul_(step.held).add_(moved)
        self._all = step.held * self._all + step.gain
        self._late = step.held * self._late + step.gain * late
        self._end = call.ahead

    def lose_track(self) -> None:
        """Until the next computed call."""
        self.since = self._moved = None

    def strayed(self, call: Call, before: Tensor, output: Tensor) -> Tensor | None:
        """How far the latent of this computed call lies from where it should, (1, C, ...) in fp32; None if unknown.

        before, output: what the network makes at both ends of the gap, (1, C, ...). From the right latent, the output
        with the picture kept differs by -latent_gain / output_gain of the distance; so the distance is on both sides of
        the equation, and is solved for.
        """
        lasted = self._since(call)
        if self._moved is None or call.level is None or not lasted or self._step_of(call) is None:
            return None
        late = self._late / lasted
        should = before.float() * (self._all - late) + output.float() * late
        pull = late * call.level.latent_gain / call.level.output_gain
        return (should - self._moved) / (1 + pull) if 1 + pull > 0 else None

    def _since(self, call: Call) -> float | None:
        return None if self.since is None else call.time - self.since

    def _step_of(self, call: Call) -> Step | None:
        """That of this call, if it stands where the last call's was to end."""
        there = self._end is not None and abs(call.sigma - self._end) <= 1e-4 * self._end
        return Step.of(call) if there else None


@dataclass(frozen=True)
class Step:
    """Euler's, x' = r x + (1 - r) D.

    kept: r, how much of the latent remains where the picture D is held. held: how much where the output is. gain: what
    an output of 1 adds.
    """

    kept: float
    held: float
    gain: float

    @classmethod
    def of(cls, call: Call) -> Step | None:
        """None where it is not known."""
        if call.level is None or call.ahead is None:
            return None
        kept = call.ahead / call.level.sigma
        return cls(kept, kept + (1 - kept) * call.level.latent_gain, (1 - kept) * call.level.output_gain)


def put_right(call: Call, output: Tensors, astray: Sequence[Astray | None]) -> Tensors:
    """The output, (R, C, ...), that leads on to where the sampler would have come from latents put right.

    astray: of each row, or None. A step to sigma 0 forgets the latent, and ends at the picture.
    """
    step = Step.of(call)
    if step is None or step.gain == 0 or all(each is None for each in astray):
        return output
    moved = output[0].clone()
    for i, each in enumerate(astray):
        if each is not None:
            ends = step.kept * each.latent[0] + (1 - step.kept) * each.picture[0]
            moved[i] += (ends / step.gain).to(moved.dtype)
    return (moved, *output[1:])


def seen_from(level: NoiseLevel, output: Tensor, astray: Astray) -> Tensor:
    """The output that shows the picture put right from the latent put right, (1, C, ...)."""
    moved = (astray.picture - level.latent_gain * astray.latent) / level.output_gain
    return (output.float() + moved).to(output.dtype)
