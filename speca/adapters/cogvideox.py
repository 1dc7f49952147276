"""CogVideoX: blocks of picture and text. Read off `comfy/ldm/cogvideo/model.py`."""

from .base import Architecture, BlockList

COGVIDEOX = Architecture(
    name="cogvideox",
    title="CogVideoX",
    networks=("CogVideoXTransformer3DModel",),
    stages=(BlockList("blocks", carried=("hidden_states", "encoder_hidden_states")),),
    models=("CogVideoX 2B, 5B, 1.5 5B, image to video, inpainting",),
    since="0.21",
)
