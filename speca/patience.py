"""When to stop making checks that lead nowhere. Pure."""

from __future__ import annotations

VAIN = 3
"""So many rejections in a row say what as many more checks will find."""


class Patience:
    """Of one stream. A check that is rejected is paid for nothing; after `VAIN` of them the next one waits for one
    call, after one more for two, then for three, as long as none is accepted and the last `VAIN` errors do not fall so
    fast, one to the next and all in all, that as many more would be within the threshold.

    It saves blocks, not quality: what is not checked is computed. Waits that double leave a DiT whose early checks are
    all in vain without any forecast; such as begin at four calls cost it 4 dB at 2x.
    """

    def __init__(self) -> None:
        self._vain: list[float] = []
        self._wait = 0

    @property
    def found(self) -> float:
        """The error that the next check would find, by those made in vain; 0 while there is patience left."""
        return self._vain[-1] if self._wait > 0 else 0.0

    def computed(self) -> None:
        """A call was computed without a check."""
        self._wait = max(self._wait - 1, 0)

    def accepted(self) -> None:
        self._vain, self._wait = [], 0

    def rejected(self, error: float, threshold: float) -> None:
        self._vain.append(error)
        if len(self._vain) < VAIN:
            return
        *earlier, before, last = self._vain[-VAIN:]
        # Over all of them too: the errors of a sampler of two stages go up and down.
        falls = min(before - last, (earlier[0] - last) / (VAIN - 1))
        if not last - VAIN * falls <= threshold:  # nor is it if one of them is not finite
            self._wait = len(self._vain) - VAIN + 1
