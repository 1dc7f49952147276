"""Lumina-Image 2 and Z-Image: layers over text and picture joined, after a few refiners.

Read off `comfy/ldm/lumina/model.py`. The refiners run on every call: they are two of some thirty blocks, and they make
what the layers are given.
"""

from .base import Architecture, BlockList

LUMINA2 = Architecture(
    name="lumina2",
    title="Lumina 2",
    networks=("NextDiT",),
    stages=(BlockList("layers", carried=("x",)),),
    models=("Lumina-Image 2.0", "Z-Image, Z-Image Turbo", "NewBie-Image"),
)
