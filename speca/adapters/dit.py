"""DiT, this project's own network: one list of blocks. See `speca/dit/model.py`."""

from .base import Architecture, BlockList

DIT = Architecture(
    name="dit",
    title="DiT",
    networks=("DiT",),
    stages=(BlockList("blocks", carried=("x",)),),
    # The small trained DiT bears more than FLUX and HunyuanVideo do (benchmarks/README.md, "Defaults").
    noise_gain_limit=5.0,
    models=("DiT-S, B, L, XL (class-conditional ImageNet)",),
)
