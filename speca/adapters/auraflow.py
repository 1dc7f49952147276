"""AuraFlow: double layers of text and picture, then single layers on both joined. Read off `comfy/ldm/aura/mmdit.py`.

Its network is called MMDiT, as the base class of Stable Diffusion 3's is, which must be looked for first.
"""

from .base import Architecture, BlockList

AURAFLOW = Architecture(
    name="auraflow",
    title="AuraFlow",
    networks=("MMDiT",),
    stages=(BlockList("double_layers", carried=("c", "x")), BlockList("single_layers", carried=("cx",))),
    models=("AuraFlow 0.1 to 0.3",),
)
