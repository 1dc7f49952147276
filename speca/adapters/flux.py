"""FLUX and its relatives: double blocks carry picture and text apart, single blocks carry them joined.

Read off `comfy/ldm/flux/model.py` and `comfy/ldm/chroma/model.py`; the blocks are `comfy/ldm/flux/layers.py`'s.
"""

from .base import Architecture, BlockList

STAGES = (
    BlockList("double_blocks", carried=("img", "txt")),
    BlockList("single_blocks", carried=("x",)),
)

FLUX = Architecture(
    name="flux",
    title="FLUX",
    networks=("Flux",),
    stages=STAGES,
    models=("FLUX.1 dev, schnell, Kontext, Fill, Krea", "FLUX.2", "LongCat-Image"),
)

CHROMA = Architecture(
    name="chroma",
    title="Chroma",
    networks=("Chroma", "ChromaRadiance"),
    stages=STAGES,
    models=("Chroma", "Chroma Radiance"),
)
