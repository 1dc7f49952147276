"""DiT, this project's own network: one list of blocks. See `speca/dit/model.py`."""

from .base import Architecture, BlockList

DIT = Architecture(
    name="dit",
    title="DiT",
    networks=("DiT",),
    stages=(BlockList("blocks", carried=("x",)),),
    # The emoji DiT bears more than the emoji FLUX and HunyuanVideo do; not confirmed on other models.
    noise_gain_limit=5.0,
    models=("DiT-S, B, L, XL (class-conditional ImageNet)",),
)
