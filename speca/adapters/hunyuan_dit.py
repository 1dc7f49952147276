"""HunyuanDiT and Hunyuan3D 2.1: U-shaped, a late block also gets the output of an early one through `skip`.

Read off `comfy/ldm/hydit/models.py` and `comfy/ldm/hunyuan3dv2_1/hunyuandit.py`.
"""

from .base import Architecture, BlockList

HUNYUAN_DIT = Architecture(
    name="hunyuan_dit",
    title="HunyuanDiT",
    networks=("HunYuanDiT",),
    stages=(BlockList("blocks", carried=("x",), also_needed=("skip",)),),
    models=("HunyuanDiT 1.0 to 1.2",),
)

HUNYUAN3D_21 = Architecture(
    name="hunyuan3d_21",
    title="Hunyuan3D 2.1",
    networks=("HunYuanDiTPlain",),
    stages=(BlockList("blocks", carried=("hidden_states",), also_needed=("skip_tensor",)),),
    models=("Hunyuan3D 2.1",),
)
