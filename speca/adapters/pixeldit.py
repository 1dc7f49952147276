"""PixelDiT and PiD: blocks over patches of the picture and text, then a few over single pixels.

Read off `comfy/ldm/pixeldit/model.py` and `pid.py`. The few over pixels are part of the head here: they get the last
patch block's output as their conditioning. What PiD adds ahead of each block is overwritten with the block's input.
"""

from .base import Architecture, BlockList

PIXELDIT = Architecture(
    name="pixeldit",
    title="PixelDiT",
    networks=("PixDiT_T2I",),
    stages=(BlockList("patch_blocks", carried=("x", "y")),),
    models=("PixelDiT text to image", "PiD"),
    since="0.23",
)
