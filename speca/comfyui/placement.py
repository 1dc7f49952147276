"""Where anchors are kept: on the model's device or in system memory.

What will be kept is known before it is: as many anchors as a stream has, of the features at hand, for every stream that
was made. Under "auto" that is held against what is free at that moment, at each full call, in the middle of the network
where its own need is near its peak; where it is too much, all that is held moves to system memory and stays there.

ComfyUI needs no telling of what is held: it reads the device's free memory before whatever it decides. It is told of
what a person wants on the card ("gpu"), so that it unloads models that are not in use; it has no way to be told at the
loading of a model, where nobody knows the features yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import comfy.model_management
import torch
from torch import Tensor

from ..config import SpeCaConfig
from ..draft import ANCHORS_TO_FORECAST
from ..stream import Streams

# The share of free memory that anchors may take: of the card before "auto" keeps them in system memory, of system
# memory before it is no longer pinned.
SHARE_OF_FREE_MEMORY = 0.25


class Placement:
    """Decides for one run where anchors are kept, and puts them there: `speca.stream.Place`."""

    def __init__(self, config: SpeCaConfig) -> None:
        self._choice = config.cache_device
        self._anchors = max(config.order + 1, ANCHORS_TO_FORECAST)
        self._streams: Streams | None = None
        self._anchor_bytes = 0
        self._in_system_memory = self._choice == "cpu"
        self._made_room = False
        self._pinned = self._has_pinned = False
        self._copying_from: torch.device | None = None

    def follow(self, streams: Streams) -> None:
        """Those of the run."""
        self._streams = streams

    @property
    def expected_bytes(self) -> int:
        """What all streams that were made will hold, if they are as large as the largest so far."""
        return self._anchor_bytes * self._anchors * (1 if self._streams is None else self._streams.count)

    def expect(self, features: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """Features, (R, ...) on their device, are about to be kept: decides where, and moves what is held if that is
        elsewhere. inputs: of the network, (B, ...); an output is as large, and a latent, which is in fp32."""
        device = features[0].device
        if device.type == "cpu":
            return
        row_bytes = sum(_row_bytes(f, f.element_size()) for f in features)
        row_bytes += sum(_row_bytes(x, x.element_size() + 4) for x in inputs)
        self._anchor_bytes = max(self._anchor_bytes, row_bytes)
        if self._choice == "gpu":
            self._make_room(device)
        elif not self._in_system_memory and not self._fits(device):
            self._in_system_memory = True
            self._may_pin(device)
            if self._streams is not None:
                self._streams.move(self)
        if self._choice == "cpu":
            self._may_pin(device)

    def _fits(self, device: torch.device) -> bool:
        held = self._streams.nbytes if self._streams is not None else 0  # on the card, all of it
        free = comfy.model_management.get_free_memory(device) + held
        return self.expected_bytes <= SHARE_OF_FREE_MEMORY * free

    def _make_room(self, device: torch.device) -> None:
        """Once a run: have ComfyUI unload what is not in use, if there is not enough free."""
        if self._made_room:
            return
        self._made_room = True
        in_use = [model for model in comfy.model_management.current_loaded_models if model.currently_used]
        comfy.model_management.free_memory(
            self.expected_bytes + comfy.model_management.minimum_inference_memory(), device, in_use
        )

    def _may_pin(self, device: torch.device) -> None:
        """Copies from and to pinned memory run beside the network; ComfyUI's own say on it counts."""
        if device.type != "cuda" or getattr(comfy.model_management, "MAX_PINNED_MEMORY", 0) <= 0:
            return
        free = comfy.model_management.get_free_memory(torch.device("cpu"))
        self._pinned = self.expected_bytes <= SHARE_OF_FREE_MEMORY * free

    def __call__(self, tensor: Tensor) -> Tensor:
        """`tensor`, which is nobody else's, where anchors live."""
        if tensor.device.type == "cpu" or not self._in_system_memory:
            return tensor
        return self._to_system_memory(tensor)

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of `tensor` where anchors live, and none on the way there. Not to be read here before `settle`."""
        if tensor.device.type == "cpu" or not self._in_system_memory:
            return tensor.clone()
        return self._to_system_memory(tensor)

    def _to_system_memory(self, tensor: Tensor) -> Tensor:
        if self._pinned:
            try:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            except RuntimeError:  # the system has no more to pin; what is not pinned is slower, and all the same
                self._pinned = False
            else:
                self._has_pinned, self._copying_from = True, tensor.device
                return copy.copy_(tensor, non_blocking=True)
        return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)

    def settle(self) -> None:
        """Wait for the copies under way."""
        if self._copying_from is not None:
            torch.cuda.current_stream(self._copying_from).synchronize()
            self._copying_from = None

    def release(self) -> None:
        """The run is over: give pinned memory back to the system, which torch would keep for later."""
        self.settle()
        give_back = getattr(getattr(torch, "accelerator", None), "empty_host_cache", None)
        if self._has_pinned and give_back is not None:
            give_back()


def _row_bytes(tensor: Tensor, element_bytes: int) -> int:
    return tensor[0].numel() * element_bytes
