"""What the first calls are worth: how many computed ones SpeCa begins with.

    python benchmarks/first_calls.py [--models flux,hunyuan_video,dit] [--steps 28] [--samples 12]

With one computed call its output can only be repeated. SpeCa does so where it can judge that, which is not where the
output is mostly the latent's own noise (`speca.session.REPEATABLE_SPREAD`); here it is also made to do so everywhere,
and nowhere. Printed is the PSNR at equal computed speedup, over thresholds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablation
from ablation import Alteration

ALTERATIONS = (
    Alteration("3", (("warmup_steps", 3),)),
    Alteration("2", (("warmup_steps", 2),)),
    Alteration("1 where it can be judged (as built)"),
    Alteration("1 everywhere", around=lambda: patch("speca.session.REPEATABLE_SPREAD", 0.0)),
)

if __name__ == "__main__":
    ablation.main(__doc__, "computed first", ALTERATIONS, stem="first-calls", models="flux,hunyuan_video,dit")
