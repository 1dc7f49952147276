"""PixArt: one list of blocks. Read off `comfy/ldm/pixart/pixartms.py`."""

from .base import Architecture, BlockList

PIXART = Architecture(
    name="pixart",
    title="PixArt",
    networks=("PixArtMS",),
    stages=(BlockList("blocks", carried=("x",)),),
    models=("PixArt-alpha", "PixArt-Sigma"),
)
