"""What it is worth to compute at once where the next check is bound to fail.

    python benchmarks/bound_to_fail.py [--models flux,dit] [--steps 28] [--samples 12]

As built, SpeCa tries no forecast whose error would pass the threshold if it grew no more than last time; here it is
also made to try every one. Printed is the PSNR at equal computed speedup, over thresholds; in wall-clock a check saved
is worth more, the more so the smaller the model.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablation
from ablation import Alteration

ALTERATIONS = (
    Alteration("every forecast", around=lambda: patch("speca.session._Stream.expected_error", lambda self, call: 0.0)),
    Alteration("none that is bound to fail (as built)"),
)

if __name__ == "__main__":
    ablation.main(__doc__, "tried", ALTERATIONS, stem="bound-to-fail", models="flux,dit")
