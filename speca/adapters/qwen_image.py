"""Qwen-Image: double blocks that return the text first. Read off `comfy/ldm/qwen_image/model.py`.

Qwen-Image 2.1 is another network (`comfy/ldm/qwen_image21/model.py`). Its first call keeps what the blocks made of text
and reference pictures, and later calls run the new picture's tokens alone: a call that left blocks out while nothing is
kept would fail.
"""

from .base import Architecture, BlockList

STAGES = (BlockList("transformer_blocks", carried=("encoder_hidden_states", "hidden_states")),)

QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    networks=("QwenImageTransformer2DModel",),
    stages=STAGES,
    models=("Qwen-Image", "Qwen-Image-Edit, Edit 2509"),
)

QWEN_IMAGE_21 = Architecture(
    name="qwen_image21",
    title="Qwen-Image 2.1",
    networks=("QwenImage21Transformer2DModel",),
    stages=(),
    native="keeps keys and values of its prompt from one call to the next",
    models=("Qwen-Image 2.1",),
    since="0.37",
    untested="read, not run",
)
