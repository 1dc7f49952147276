"""What the first calls are worth: how many computed ones SpeCa begins with.

    python benchmarks/first_calls.py [--models flux,hunyuan_video,dit] [--steps 28] [--samples 12]

From one computed call features and output can only be repeated. Where the output is mostly the latent's own noise,
SpeCa repeats what does not follow from the latent (`speca.session.MOSTLY_NOISE_SPREAD`); here it is also made to repeat
both as they are everywhere, and what does not follow from the latent everywhere. Printed is the PSNR at equal computed
speedup, over thresholds.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablation
from ablation import Alteration

ALTERATIONS = (
    Alteration("3", (("warmup_steps", 3),)),
    Alteration("2", (("warmup_steps", 2),)),
    Alteration("1, repeated as it is", around=lambda: patch("speca.session.MOSTLY_NOISE_SPREAD", 0.0)),
    Alteration(
        "1, less what follows from the latent", around=lambda: patch("speca.session.MOSTLY_NOISE_SPREAD", math.inf)
    ),
    Alteration("1, the one or the other by the model (as built)"),
)

if __name__ == "__main__":
    ablation.main(__doc__, "computed first", ALTERATIONS, stem="first-calls", models="flux,hunyuan_video,dit")
