"""JoyImage: double blocks of picture and text. Read off `comfy/ldm/joyimage/model.py`."""

from .base import Architecture, BlockList

JOYIMAGE = Architecture(
    name="joyimage",
    title="JoyImage",
    networks=("JoyImageTransformer3DModel",),
    stages=(BlockList("double_blocks", carried=("hidden_states", "encoder_hidden_states")),),
    models=("JoyImage",),
    since="0.29",
)
