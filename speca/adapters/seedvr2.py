"""SeedVR2: blocks of video and text. Read off `comfy/ldm/seedvr/model.py`.

The tokens of all samples are packed in one row, (L, D); the blocks return the samples' shapes with them.
"""

from .base import Architecture, BlockList

SEEDVR2 = Architecture(
    name="seedvr2",
    title="SeedVR2",
    networks=("NaDiT",),
    stages=(
        BlockList("blocks", carried=("vid", "txt"), returns=("vid", "txt", "vid_shape", "txt_shape"), batch_dim=None),
    ),
    models=("SeedVR2 3B, 7B (with more than its one usual step)",),
    since="0.25",
)
