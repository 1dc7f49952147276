"""OmniGen2: layers over text and pictures joined, after a few refiners. Read off `comfy/ldm/omnigen/omnigen2.py`."""

from .base import Architecture, BlockList

OMNIGEN2 = Architecture(
    name="omnigen2",
    title="OmniGen2",
    networks=("OmniGen2Transformer2DModel",),
    stages=(BlockList("layers", carried=("hidden_states",)),),
    models=("OmniGen2",),
)
