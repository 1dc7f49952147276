"""Stable Diffusion 3: joint blocks of text and picture.

Read off `comfy/ldm/modules/diffusionmodules/mmdit.py`. The block's forward takes `*args`: text, then picture. The last
block returns no text.
"""

from .base import Architecture, BlockList

SD3 = Architecture(
    name="sd3",
    title="Stable Diffusion 3",
    networks=("OpenAISignatureMMDITWrapper",),
    stages=(BlockList("joint_blocks", carried=(0, 1)),),
    models=("Stable Diffusion 3 Medium", "3.5 Medium, Large, Large Turbo"),
)
