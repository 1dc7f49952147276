"""Ideogram 4: one list of layers over text and picture joined. Read off `comfy/ldm/ideogram4/model.py`."""

from .base import Architecture, BlockList

IDEOGRAM4 = Architecture(
    name="ideogram4",
    title="Ideogram 4",
    networks=("Ideogram4Transformer2DModel",),
    stages=(BlockList("layers", carried=("x",)),),
    models=("Ideogram 4",),
    since="0.24",
)
