"""Krea 2: one list of blocks over text and picture joined, after a few that fuse the text encoder's layers.

Read off `comfy/ldm/krea2/model.py`. Reference pictures are further tokens of the same row.
"""

from .base import Architecture, BlockList

KREA2 = Architecture(
    name="krea2",
    title="Krea 2",
    networks=("SingleStreamDiT",),
    stages=(BlockList("blocks", carried=("x",)),),
    models=("Krea 2",),
    since="0.26",
)
