"""Where anchors are kept: on the model's device or in system memory."""

from __future__ import annotations

import comfy.model_management
from torch import Tensor

from ..config import SpeCaConfig

# The share of free memory that anchors may take before "auto" keeps them in system memory.
AUTO_SHARE_OF_FREE_MEMORY = 0.25


class Placement:
    """Decides once per run where anchors are kept, and moves them there."""

    def __init__(self, config: SpeCaConfig) -> None:
        self._choice = config.cache_device
        self._anchors = config.order + 1

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu":
            return tensor
        if self._choice == "auto":
            # Cond and uncond, each with all its anchors: the usual most that will be kept.
            expected = 2 * self._anchors * tensor.numel() * tensor.element_size()
            free = comfy.model_management.get_free_memory(tensor.device)
            self._choice = "gpu" if expected <= AUTO_SHARE_OF_FREE_MEMORY * free else "cpu"
        return tensor if self._choice == "gpu" else tensor.to("cpu")
