"""LTX-Video: one list of blocks. Read off `comfy/ldm/lightricks/model.py` and, for LTX-2, `av_model.py`.

LTX-2's blocks carry picture and sound in one parameter, a tuple of two tensors; the network takes and returns a list.
"""

from .base import Architecture, BlockList

STAGES = (BlockList("transformer_blocks", carried=("x",)),)

LTXV = Architecture(
    name="ltxv",
    title="LTX-Video",
    networks=("LTXVModel",),
    stages=STAGES,
    models=("LTX-Video 0.9 to 0.9.8",),
)

LTX2 = Architecture(
    name="ltx2",
    title="LTX-2",
    networks=("LTXAVModel",),
    stages=STAGES,
    models=("LTX-2, 2.3, 2.5 (picture and sound)",),
    since="0.8",
)
