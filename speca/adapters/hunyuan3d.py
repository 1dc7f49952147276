"""Hunyuan3D 2.0: FLUX's blocks over shape tokens. Read off `comfy/ldm/hunyuan3d/model.py`."""

from .base import Architecture
from .flux import STAGES

HUNYUAN3D = Architecture(
    name="hunyuan3d",
    title="Hunyuan3D 2",
    networks=("Hunyuan3Dv2",),
    stages=STAGES,
    models=("Hunyuan3D 2.0, mini, multiview",),
)
