"""What the first calls are worth: how many computed ones SpeCa begins with.

    python benchmarks/first_calls.py [--models flux,hunyuan_video,dit] [--steps 28] [--samples 12]

From one computed call features and output can only be repeated (where noise is predicted, in what does not follow from
the latent: `noise_predicted.py`). Printed is the PSNR at equal computed speedup, over thresholds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import ablation
from ablation import Alteration

ALTERATIONS = (
    Alteration("3", (("warmup_steps", 3),)),
    Alteration("2", (("warmup_steps", 2),)),
    Alteration("1 (as built)"),
)

if __name__ == "__main__":
    ablation.main(__doc__, "computed first", ALTERATIONS, stem="first-calls", models="flux,hunyuan_video,dit")
