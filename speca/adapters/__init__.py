"""The architectures SpeCa knows, and how a network is matched with one.

`ARCHITECTURES` is also what the README's table of models is rendered from, see `table`.
"""

from __future__ import annotations

from torch import nn

from .ace_step import ACE_STEP, ACE_STEP_15
from .auraflow import AURAFLOW
from .base import Anatomy, Architecture, NotThisArchitectureError, comfyui, find_anatomy
from .boogu import BOOGU
from .cogvideox import COGVIDEOX
from .cosmos import COSMOS1, PREDICT2
from .dit import DIT
from .ernie_image import ERNIE_IMAGE
from .flux import CHROMA, FLUX
from .generic import discover
from .hidream import HIDREAM
from .hidream_o1 import HIDREAM_O1
from .hunyuan3d import HUNYUAN3D
from .hunyuan_dit import HUNYUAN3D_21, HUNYUAN_DIT
from .hunyuan_video import HUNYUAN_VIDEO
from .ideogram4 import IDEOGRAM4
from .joyimage import JOYIMAGE
from .kandinsky5 import KANDINSKY5
from .krea2 import KREA2
from .lens import LENS
from .ltxv import LTX2, LTXV
from .lumina import LUMINA2
from .mage_flow import MAGE_FLOW
from .minimax_h3 import MINIMAX_H3
from .minimax_music import MINIMAX_MUSIC
from .mochi import MOCHI
from .omnigen2 import OMNIGEN2
from .pixart import PIXART
from .pixeldit import PIXELDIT
from .qwen_image import QWEN_IMAGE, QWEN_IMAGE_21
from .sd3 import SD3
from .seedvr2 import SEEDVR2
from .stable_audio import STABLE_AUDIO
from .wan import WAN, WAN_ANIMATE_2

# A network is matched with the first that names it or one of its base classes: derived classes before their bases.
ARCHITECTURES: tuple[Architecture, ...] = (
    FLUX,
    CHROMA,
    HUNYUAN_VIDEO,
    DIT,
    WAN_ANIMATE_2,
    WAN,
    QWEN_IMAGE,
    QWEN_IMAGE_21,
    MAGE_FLOW,
    KREA2,
    IDEOGRAM4,
    MINIMAX_H3,
    SD3,
    AURAFLOW,
    LTX2,
    LTXV,
    LUMINA2,
    HIDREAM,
    HIDREAM_O1,
    COSMOS1,
    PREDICT2,
    KANDINSKY5,
    PIXART,
    HUNYUAN_DIT,
    OMNIGEN2,
    BOOGU,
    ERNIE_IMAGE,
    JOYIMAGE,
    LENS,
    PIXELDIT,
    COGVIDEOX,
    SEEDVR2,
    MOCHI,
    HUNYUAN3D,
    HUNYUAN3D_21,
    ACE_STEP,
    ACE_STEP_15,
    MINIMAX_MUSIC,
    STABLE_AUDIO,
)


def named(network: type[nn.Module]) -> Architecture | None:
    """The architecture that names this class or one of its bases, whatever an instance of it turns out to have."""
    names = [cls.__name__ for cls in network.__mro__]
    return next((a for a in ARCHITECTURES if not set(a.networks).isdisjoint(names)), None)


def recognise(network: nn.Module) -> Anatomy:
    """The anatomy of `network`. Raises `NotThisArchitectureError` with a sentence a person can act on.

    Matched by the class names of the network and of its bases, so that a subclass (a pack's own variant of FLUX) is
    recognised; then every statement of the architecture is checked against the network itself. A network that none
    fits is looked at by its structure alone (`generic`); what comes of that is experimental, and must be proved on the
    network's first call before it is used.
    """
    architecture = named(type(network))
    if architecture is None:
        missing = f"SpeCa has no adapter for {type(network).__name__}"
    elif architecture.native:
        raise NotThisArchitectureError(f"{architecture.title} {architecture.native}; it runs uncached")
    else:
        try:
            return find_anatomy(architecture, network)
        except NotThisArchitectureError as changed:
            missing = f"SpeCa knows {architecture.title}, but in {comfyui()} {changed}"
    return discover(network, missing)
