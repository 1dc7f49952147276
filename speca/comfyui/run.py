"""One sampling run inside ComfyUI: each call of its network described, bound, and answered by the session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Any

from torch import nn

from ..adapters import NotThisArchitectureError, recognise
from ..adapters.base import Anatomy
from ..adapters.generic import prove
from ..call import ForecastImpossibleError
from ..path import SamplingPath
from ..session import Session
from .compiled import Forwards, uncompiled
from .describe import describe, patch_signature
from .network import BoundNetwork, Entry, copied


class Run:
    """Lies in `transformer_options` for one sampling run: turns the network's calls into the session's."""

    def __init__(self, session: Session, path: SamplingPath) -> None:
        self.session = session
        self.path = path
        self._anatomies: dict[int, tuple[nn.Module, Anatomy]] = {}
        self._entries: dict[Hashable, Entry] = defaultdict(Entry)

    @property
    def native(self) -> bool:
        """Whether the rest of the run is left to the model itself."""
        return self.session.tally.header.native is not None

    def anatomy_of(self, network: nn.Module) -> Anatomy:
        """Found once a run for each network: several devices have a copy each. Raises NotThisArchitectureError."""
        if id(network) not in self._anatomies:  # the entry keeps the network alive, and with it the id
            self._anatomies[id(network)] = network, recognise(uncompiled(network))
        return self._anatomies[id(network)][1]

    def forward(self, model: Any, latent: Any, anatomy: Anatomy, forwards: Forwards, *args: Any, **kwargs: Any) -> Any:
        """Stands in for `diffusion_model.forward(x, timestep, ...)` during one call; `latent` is the sampler's x."""
        options = kwargs.get("transformer_options", {})
        patched = bool(patch_signature(options))
        architecture = anatomy.architecture
        try:
            for option, why in architecture.native_with:
                if options.get(option) is not None:
                    raise ForecastImpossibleError(why)
            call = describe(model, latent, args[0], options, self.path)
            # Other packs' patches may hold tensors for this very batch: then it is never taken apart.
            splittable = call.n_samples > 1 and not patched and not architecture.mixes_rows
            if architecture.experimental and self.session.config.threshold > 0:
                anatomy = _proved(model, anatomy, forwards, args, kwargs, len(call.streams))
                splittable = False  # how the network treats the rows of a batch is not known
        except ForecastImpossibleError as refused:
            self.session.tally.go_native(f"this call cannot be cached ({refused}); the run is computed natively")
            return forwards.full(*args, **kwargs)
        except NotThisArchitectureError as missing:
            self.session.tally.go_native(str(missing))
            return forwards.full(*args, **kwargs)
        added_to = patched or kwargs.get("control") is not None
        entry = Entry(False) if added_to or forwards.compiled else self._entries[call.kind]
        network = BoundNetwork(anatomy, forwards, args, kwargs, len(call.streams), splittable, entry)
        return network.restore(self.session.evaluate(call, network))


def _proved(
    model: Any, proposed: Anatomy, forwards: Forwards, args: tuple[Any, ...], kwargs: dict[str, Any], n_rows: int
) -> Anatomy:
    """The anatomy of a network found by its structure, tried out on a copy of this call's inputs."""

    def bind(anatomy: Anatomy) -> BoundNetwork:
        own_args = tuple(copied(a) for a in args)
        own_kwargs = {k: v if k == "transformer_options" else copied(v) for k, v in kwargs.items()}
        return BoundNetwork(anatomy, forwards, own_args, own_kwargs, n_rows, False, Entry(False))

    return prove(uncompiled(model.diffusion_model), proposed, bind)
