"""Every method that is measured, by the name it has on the command line. One file holds one family."""

from __future__ import annotations

from . import core_caches, fewer_steps, released, speca, taylor
from .base import Method

FAMILIES = (fewer_steps, core_caches, taylor, released, speca)

METHODS: dict[str, Method] = {method.name: method for family in FAMILIES for method in family.METHODS}
RIVALS = tuple(name for name in METHODS if name != "speca")
