"""Demo nodes: small trained emoji models of ComfyUI's own architectures, so that caching can be tried on any machine.

Linked into `custom_nodes` by `python dev.py demo`; `models` and `judge` serve the tests and the benchmark as a library.
"""

from __future__ import annotations


async def comfy_entrypoint():
    # imported here, so that the library can be used without ComfyUI's node API
    from .demo_nodes import EmojiDemo

    return EmojiDemo()
