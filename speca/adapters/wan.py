"""Wan 2.1 and 2.2: one list of blocks; the variants add conditioning before, between or inside them.

Read off `comfy/ldm/wan/model.py` and `model_animate.py`. VACE's own blocks feed the main ones through residuals, as
Animate's face blocks do: both only matter to blocks that are skipped, unless one runs after the last main block, and
then every call is computed in full. The sound injectors of S2V do run after the last block, so they always run.
"""

from .base import Architecture, BlockList

WAN = Architecture(
    name="wan",
    title="Wan",
    networks=("WanModel",),
    stages=(BlockList("blocks", carried=("x",)),),
    also_skipped=(
        BlockList("vace_blocks", carried=("c",), returns=("c", "c")),
        BlockList("face_adapter.fuser_blocks", carried=("x",)),
    ),
    models=(
        "Wan 2.1 text to video, image to video, first-last frame",
        "Wan 2.1 VACE, Fun Camera, HuMo",
        "Wan 2.2 14B, 5B, Fun Camera, Animate, S2V",
    ),
)
