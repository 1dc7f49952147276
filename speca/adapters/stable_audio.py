"""Stable Audio: one list of layers. Read off `comfy/ldm/audio/dit.py`."""

from .base import Architecture, BlockList

STABLE_AUDIO = Architecture(
    name="stable_audio",
    title="Stable Audio",
    networks=("AudioDiffusionTransformer",),
    stages=(BlockList("transformer.layers", carried=("x",)),),
    models=("Stable Audio Open 1.0",),
)
