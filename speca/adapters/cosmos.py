"""Cosmos: one list of blocks. Read off `comfy/ldm/cosmos/model.py` (1) and `predict2.py`.

Cosmos 1 keeps its blocks in a dict and its tokens as (T, H, W, B, D).
"""

from .base import Architecture, BlockList

COSMOS1 = Architecture(
    name="cosmos1",
    title="Cosmos 1",
    networks=("GeneralDIT",),
    stages=(BlockList("blocks", carried=("x",), batch_dim=3),),
    models=("Cosmos 1.0 Diffusion 7B, 14B, text or video to world",),
)

PREDICT2 = Architecture(
    name="cosmos_predict2",
    title="Cosmos Predict2",
    networks=("MiniTrainDIT",),
    stages=(BlockList("blocks", carried=("x_B_T_H_W_D",)),),
    models=("Cosmos Predict2 text to image, video to world", "Anima"),
)
