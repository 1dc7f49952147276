"""Lens: double blocks that return the text first. Read off `comfy/ldm/lens/model.py`."""

from .base import Architecture, BlockList

LENS = Architecture(
    name="lens",
    title="Lens",
    networks=("LensTransformer2DModel",),
    stages=(BlockList("transformer_blocks", carried=("encoder_hidden_states", "hidden_states")),),
    models=("Lens",),
    since="0.23",
)
