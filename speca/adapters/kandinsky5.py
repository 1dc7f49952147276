"""Kandinsky 5: decoder blocks over the picture's tokens, after two over the text's that run on every call.

Read off `comfy/ldm/kandinsky5/model.py` of ComfyUI 0.4.
"""

from .base import Architecture, BlockList

KANDINSKY5 = Architecture(
    name="kandinsky5",
    title="Kandinsky 5",
    networks=("Kandinsky5",),
    stages=(BlockList("visual_transformer_blocks", carried=("visual_embed",)),),
    models=("Kandinsky 5.0 Lite, Pro, Image",),
    since="0.4",
)
