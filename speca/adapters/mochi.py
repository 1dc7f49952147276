"""Mochi: one list of blocks, for picture and text. Read off `comfy/ldm/genmo/joint_model/asymm_models_joint.py`."""

from .base import Architecture, BlockList

MOCHI = Architecture(
    name="mochi",
    title="Mochi",
    networks=("AsymmDiTJoint",),
    stages=(BlockList("blocks", carried=("x", "y")),),
    models=("Mochi 1",),
    untested="its blocks assert their real sizes, so no small one can be built",
)
