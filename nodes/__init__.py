"""ComfyUI nodes. One file per family; each exports `NODES`."""

from __future__ import annotations

import importlib
import logging

from comfy_api.latest import ComfyExtension, io

FAMILIES = ("speca", "report", "compare", "tune", "sweep", "dit")


class SpeCaExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        nodes: list[type[io.ComfyNode]] = []
        for family in FAMILIES:
            try:
                nodes += importlib.import_module(f".{family}", __name__).NODES
            except Exception:  # one family that a changed ComfyUI breaks must not take the others with it
                logging.exception("SpeCa: the nodes of %r could not be loaded", family)
        return nodes
