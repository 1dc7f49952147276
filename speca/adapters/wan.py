"""Wan 2.1 and 2.2: one list of blocks; the variants add conditioning before, between or inside them.

Read off `comfy/ldm/wan/model.py` and `model_animate.py`. VACE's own blocks feed the main ones through residuals, as
Animate's face blocks do: both only matter to blocks that are skipped, unless one runs after the last main block, and
then every call is computed in full. The sound injectors of S2V and the music injectors of WanDancer may run after the
last block, so they always run. The causal Wan's sampler (`ar_model.py`) gives each call the frames of one block and
keeps what earlier ones left.
"""

from .base import Architecture, BlockList

WAN = Architecture(
    name="wan",
    title="Wan",
    networks=("WanModel",),
    stages=(BlockList("blocks", carried=("x",)),),
    also_skipped=(
        BlockList("vace_blocks", carried=("c",), returns=("c", "c")),
        BlockList("face_adapter.fuser_blocks", carried=("x",)),
    ),
    native_with=(("ar_state", "the causal Wan keeps keys and values of the frames before"),),
    models=(
        "Wan 2.1 text to video, image to video, first-last frame",
        "Wan 2.1 VACE, Fun Camera, HuMo, FlowRVS, SCAIL, SCAIL-2",
        "Wan 2.2 14B, 5B, Fun Camera, Animate, S2V, WanDancer",
    ),
)

# Its network calls a method of each block for the new video, and another one for the pose video, whose keys and values
# the first one gets. The other runs on every call, or its cache would keep what skipped blocks were given.
WAN_ANIMATE_2 = Architecture(
    name="wan_animate2",
    title="Wan-Animate 2",
    networks=("WanAnimate2Model",),
    stages=(BlockList("blocks", carried=("x",), method="forward_gen"),),
    models=("Wan-Animate 2",),
    since="0.31",
)
