"""Mage-Flow: Qwen-Image's blocks, which return the text first. Read off `comfy/ldm/mage_flow/model.py`."""

from .base import Architecture
from .qwen_image import STAGES

MAGE_FLOW = Architecture(
    name="mage_flow",
    title="Mage-Flow",
    networks=("MageFlowTransformer2DModel",),
    stages=STAGES,
    models=("Mage-Flow",),
    since="0.29",
)
