"""What several nodes' inputs share."""

from __future__ import annotations

from comfy_api.latest import io


def advanced(an_input: io.Input) -> io.Input:
    """Fold an input away where ComfyUI can (from 0.10); older versions pass the unknown option through unread."""
    an_input.extra_dict = {**(an_input.extra_dict or {}), "advanced": True}
    return an_input
