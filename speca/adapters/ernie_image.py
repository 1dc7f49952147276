"""ERNIE-Image: one list of layers over picture and text joined. Read off newer ComfyUI's `comfy/ldm/ernie/model.py`."""

from .base import Architecture, BlockList

ERNIE_IMAGE = Architecture(
    name="ernie_image",
    title="ERNIE-Image",
    networks=("ErnieImageModel",),
    stages=(BlockList("layers", carried=("x",)),),
    models=("ERNIE-Image",),
    since="0.19",
)
