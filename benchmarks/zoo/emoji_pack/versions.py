"""What differs between versions of ComfyUI, from 0.3.75 on, in its own classes of networks.

Asked of the classes and networks that are there, not of a version number. From 0.4 on their parameter classes require
fields that older ones do not know (`txt_ids_dims`, `meanflow_sum`, ...); from 0.14 on the norms of queries and keys
call their weight `weight`, before that `scale`. Lumina 2 had a norm that nothing used.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

# `image_model` of a configuration -> the dataclass that takes the rest of it.
PARAMETERS = {
    "flux": "comfy.ldm.flux.model.FluxParams",
    "flux2": "comfy.ldm.flux.model.FluxParams",
    "chroma": "comfy.ldm.chroma.model.ChromaParams",
    "chroma_radiance": "comfy.ldm.chroma_radiance.model.ChromaRadianceParams",
    "hunyuan_video": "comfy.ldm.hunyuan_video.model.HunyuanVideoParams",
}
# Ends of names under which a weight may be stored: each stands for the others.
SYNONYMS = (("_norm.scale", "_norm.weight"),)
# Weights that a network had and never used, and has no more.
UNUSED = ("norm_final.weight",)


def fitted(unet: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration as the ComfyUI that is there takes it.

    Fields that its parameter class requires and `unet` does not name are switched off: false, empty, or None. Fields
    that it does not know are left out. Configurations of networks without a parameter class are returned as they are.
    """
    path = PARAMETERS.get(str(unet.get("image_model")))
    if path is None:
        return dict(unet)
    module, _, name = path.rpartition(".")
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    known = {field.name for field in fields} | {"image_model"}
    required = {field.name: _off(field) for field in fields if _is_required(field)}
    return required | {key: value for key, value in unet.items() if key in known}


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _off(field: dataclasses.Field) -> Any:
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
    return {"bool": False, "list": []}.get(kind)


def renamed(weights: Mapping[str, T], wanted: Collection[str]) -> dict[str, T]:
    """`weights` by the names that a network has for them (`wanted`, those of its own state dict), whichever version of
    ComfyUI they were saved with. A name that fits nothing is kept, for whoever loads them to complain of."""
    used = {name: weight for name, weight in weights.items() if name in wanted or name not in UNUSED}
    return {_name_in(wanted, name): weight for name, weight in used.items()}


def _name_in(wanted: Collection[str], name: str) -> str:
    if name in wanted:
        return name
    for endings in SYNONYMS:
        for ending in endings:
            if name.endswith(ending):
                others = (name.removesuffix(ending) + other for other in endings)
                return next((other for other in others if other in wanted), name)
    return name
