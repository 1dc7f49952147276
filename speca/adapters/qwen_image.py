"""Qwen-Image: double blocks that return the text first. Read off `comfy/ldm/qwen_image/model.py`.

Qwen-Image 2.1 is another network (`comfy/ldm/qwen_image21/model.py`). It keeps keys and values of text and reference
pictures: a prompt's first call runs each block on those and then on the new picture, which is all that later calls run.
A block that runs twice leaves no anchor, so the second call is the first to forecast from.
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
    stages=(BlockList("transformer_blocks", carried=("x",)),),
    mixes_rows=True,  # what is kept belongs to all rows of a call: some of them alone would find nothing kept
    models=("Qwen-Image 2.1",),
    since="0.37",
    untested="read, run as a stand-in",
)
