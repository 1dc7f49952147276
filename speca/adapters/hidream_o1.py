"""HiDream-O1: a language model's layers over text and picture. Read off `comfy/ldm/hidream_o1/model.py`.

The first call of a prompt runs the whole sequence and keeps what the layers made of the prompt; later calls run the
picture's tokens alone. A call that left layers out while nothing is kept would keep nonsense.
"""

from .base import Architecture

HIDREAM_O1 = Architecture(
    name="hidream_o1",
    title="HiDream-O1",
    networks=("HiDreamO1Transformer",),
    stages=(),
    native="keeps keys and values of its prompt from one call to the next",
    models=("HiDream-O1-Image",),
    since="0.21",
)
