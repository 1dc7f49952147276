"""Qwen-Image: double blocks that return the text first. Read off `comfy/ldm/qwen_image/model.py`."""

from .base import Architecture, BlockList

QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    networks=("QwenImageTransformer2DModel",),
    stages=(BlockList("transformer_blocks", carried=("encoder_hidden_states", "hidden_states")),),
    models=("Qwen-Image", "Qwen-Image-Edit, Edit 2509"),
)
