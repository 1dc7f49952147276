"""What it is worth to treat a model that predicts noise otherwise than one that predicts a flow.

    python benchmarks/noise_predicted.py [--models dit,flux] [--steps 28] [--samples 12]

Where a run begins with an output that is mostly its latent's noise (`speca.session.MOSTLY_NOISE_SPREAD`), SpeCa repeats
a lone anchor in what its blocks added, leaves a share of the embedded input out of the anchors and takes it from the
call itself, and answers with a share of the direct forecast before any rejection taught one. Here that is done nowhere,
as built, and everywhere with other shares. Printed is the PSNR at equal computed speedup, over thresholds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablation
from ablation import Alteration


def altered(spread: float, own: float, direct: float | None) -> Callable[[], AbstractContextManager[Any]]:
    """Latents of less than `spread` count as noise; `own` share of the latent, `direct` share of the answer."""
    values = {"MOSTLY_NOISE_SPREAD": spread, "OWN_SHARE": own, "DIRECT_SHARE": direct}
    return lambda: patch.multiple("speca.session", **values)


ALTERATIONS = (
    Alteration("nowhere", around=altered(0.0, 0.0, None)),
    Alteration("everywhere: lone anchors only", around=altered(math.inf, 0.0, None)),
    *(
        Alteration(f"everywhere: own {own:g}, direct {direct:g}", around=altered(math.inf, own, direct))
        for own, direct in (
            (0.0, 0.4),
            (0.2, 0.4),
            (0.4, 0.0),
            (0.4, 0.2),
            (0.4, 0.4),
            (0.4, 0.6),
            (0.7, 0.4),
            (1.0, 0.4),
        )
    ),
    Alteration("where noise is predicted: own 0.4, direct 0.4 (as built)"),
)

if __name__ == "__main__":
    ablation.main(__doc__, "done", ALTERATIONS, stem="noise-predicted", models="dit,flux")
