"""MiniMax H3: picture, sound and text in one row of tokens. Read off `comfy/ldm/minimax/model.py`.

Its tokens are (S, D): the network takes one sample a call, cond and uncond apart.
"""

from .base import Architecture, BlockList

MINIMAX_H3 = Architecture(
    name="minimax_h3",
    title="MiniMax H3",
    networks=("MiniMaxH3Model",),
    stages=(BlockList("blocks", carried=("x",), batch_dim=None),),
    models=("MiniMax H3 (picture and sound)",),
    since="0.30",
)
