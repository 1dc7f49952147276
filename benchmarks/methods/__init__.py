"""Every method that is measured, by the name it has on the command line. One file holds one family."""

from __future__ import annotations

from . import (
    core_caches,
    dpcache,
    exponential,
    fewer_steps,
    meancache,
    own_plan,
    racer,
    released,
    seacache,
    speca,
    spectrum,
    taylor,
)
from .base import Method

OWN = ("speca", *(method.name for method in own_plan.METHODS))
"""SpeCa, and what is left of it without its checks: to show what they are worth, not to compare with others."""

FAMILIES = (
    fewer_steps,
    core_caches,
    taylor,
    released,
    dpcache,
    meancache,
    spectrum,
    seacache,
    racer,
    exponential,
    own_plan,
    speca,
)

METHODS: dict[str, Method] = {method.name: method for family in FAMILIES for method in family.METHODS}
RIVALS = tuple(name for name in METHODS if name not in OWN)
