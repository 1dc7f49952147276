"""Boogu: OmniGen2's layers after double ones of picture and text. Read off `comfy/ldm/boogu/model.py`."""

from .base import Architecture, BlockList

BOOGU = Architecture(
    name="boogu",
    title="Boogu",
    networks=("BooguTransformer2DModel",),
    stages=(
        BlockList("double_stream_layers", carried=("img_hidden_states", "instruct_hidden_states")),
        BlockList("single_stream_layers", carried=("hidden_states",)),
    ),
    models=("Boogu-Image",),
    since="0.26",
)
