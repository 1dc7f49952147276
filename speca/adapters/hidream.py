"""HiDream: double blocks, then single blocks; both get text appended before each block, and cropped after it.

Read off `comfy/ldm/hidream/model.py`. The appended text is part of what is carried into the verification block.
"""

from .base import Architecture, BlockList

HIDREAM = Architecture(
    name="hidream",
    title="HiDream",
    networks=("HiDreamImageTransformer2DModel",),
    stages=(
        BlockList("double_stream_blocks", carried=("image_tokens", "text_tokens")),
        BlockList("single_stream_blocks", carried=("image_tokens",)),
    ),
    models=("HiDream-I1 Full, Dev, Fast", "HiDream-E1, E1.1"),
)
