"""How wrong is likely: what SpeCa compares with the threshold, piece by piece, and what the true error would give.

    python benchmarks/likely.py [--models flux,dit] [--steps 28] [--samples 12]

Each variant judges the same forecasts by something else; all other rules stay. *True error* computes every speculated
call in full beside it, at no counted cost: no run can have that, so it bounds what a better check could gain. Printed
is the PSNR at equal computed speedup, over thresholds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablation
from ablation import Alteration


@dataclass(frozen=True)
class Variant:
    """growth: of the sum of errors, per forecast. reach: whether it counts. true: judged by the truth."""

    name: str
    growth: float
    reach: bool = False
    true: bool = False


VARIANTS = (
    Variant("difference alone", 1.0),
    Variant("difference, sum grows by 1.2", 1.2),
    Variant("difference, sum grows by 1.4", 1.4),
    Variant("difference and reach", 1.0, reach=True),
    Variant("difference and reach, 1.1", 1.1, reach=True),
    Variant("difference and reach, 1.2 (as built)", 1.2, reach=True),
    Variant("difference and reach, 1.4", 1.4, reach=True),
    Variant("true error", 1.0, true=True),
)


@contextmanager
def judging_by(variant: Variant) -> Iterator[None]:
    """SpeCa's sessions judge as the variant says."""
    from speca.session import Session

    with ExitStack() as stack:
        stack.enter_context(patch("speca.session.CARRIED_GROWTH", variant.growth))
        if variant.true:
            stack.enter_context(patch.object(Session, "_speculate", _knowing_the_truth(Session._speculate)))
        elif not variant.reach:
            stack.enter_context(patch("speca.session.likely_error", lambda difference, reach: difference))
        yield


def _knowing_the_truth(speculate: Callable[..., Any]) -> Callable[..., Any]:
    """`Session._speculate` that finds the error of the answer it would give against the exact output."""
    from speca.session import Session, _Draft

    def knowing(self: Any, call: Any, network: Any, samples: Sequence[int]) -> Any:
        drafts: list[Any] = []

        def error(direct: Any, verified: Any) -> Any:
            if drafts:  # the second question is how far the forecast reaches
                return drafts[0]
            rows = call.rows_of(samples)
            exact = network.full(None if len(rows) == len(call.streams) else rows, False, call.renoised).output
            answer = self._answer(call, _Draft(rows, verified, direct), rows).output
            drafts.append(Session._error(self, answer, exact))
            return drafts[0]

        with patch.object(self, "_error", error):
            return speculate(self, call, network, samples)

    return knowing


if __name__ == "__main__":
    ablation.main(
        __doc__,
        "judged by",
        [Alteration(variant.name, around=lambda variant=variant: judging_by(variant)) for variant in VARIANTS],
        stem="likely",
        models="flux,dit",
    )
