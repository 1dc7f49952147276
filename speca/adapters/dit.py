"""DiT, this project's own network: one list of blocks. See `speca/dit/model.py`."""

from .base import Architecture, BlockList

DIT = Architecture(
    name="dit",
    title="DiT",
    networks=("DiT",),
    stages=(BlockList("blocks", carried=("x",)),),
    models=("DiT-S, B, L, XL (class-conditional ImageNet)",),
)
