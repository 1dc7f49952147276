"""HunyuanVideo: FLUX's blocks over the tokens of a clip.

Read off `comfy/ldm/hunyuan_video/model.py`. Whether picture or text tokens come first has changed between versions of
ComfyUI; only the network's own code joins and parts them, so nothing here depends on it. HunyuanVideo 1.5 has no single
blocks: its last double block verifies.
"""

from .base import Architecture
from .flux import STAGES

HUNYUAN_VIDEO = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    networks=("HunyuanVideo",),
    stages=STAGES,
    models=(
        "HunyuanVideo text to video",
        "image to video (token replace, concat)",
        "HunyuanVideo 1.5",
        "HunyuanImage 2.1",
    ),
)
