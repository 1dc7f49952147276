"""MiniMax Music 3: one list of layers over the frames of a song. Read off `comfy/ldm/minimax_music/dit.py`.

A song of more than one window (8 s) runs its layers once for each window inside one call: such calls are computed in
full.
"""

from .base import Architecture, BlockList

MINIMAX_MUSIC = Architecture(
    name="minimax_music",
    title="MiniMax Music 3",
    networks=("MiniMaxMusic3DiT",),
    stages=(BlockList("diffusion_transformer.transformer.layers", carried=("x",)),),
    models=("MiniMax Music 3 (songs of one window)",),
    since="0.33",
)
