"""One sampling run inside ComfyUI: each call of its network described, bound, and answered by the session."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ..adapters import NotThisArchitectureError, recognise
from ..adapters.base import Anatomy, uncompiled
from ..adapters.generic import prove
from ..call import Call, ForecastImpossibleError, Tensors
from ..path import SamplingPath, Seen
from ..session import Session
from .compiled import Forwards
from .counting import BlocksMissingError, Census
from .describe import describe, patch_signature
from .identity import Ordinals
from .network import BoundNetwork, copied
from .others import Own, around_the_network, blamed, in_the_network
from .placement import Placement

log = logging.getLogger(__name__)

JUMPS = (
    "the sampler goes on from other latents than its steps lead to (fresh noise, inner loops), again and again; "
    "the run is computed natively"
)

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class NetworkFaultError(Exception):
    """Around what the network raised where it was run in full, which is not SpeCa's to mend."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Run:
    """Lies in `transformer_options` for one sampling run: turns the network's calls into the session's."""

    def __init__(
        self,
        session: Session,
        path: SamplingPath,
        network: nn.Module,
        placement: Placement,
    ) -> None:
        self.session = session
        self.path = path
        self.placement = placement
        placement.follow(session.streams)
        self._anatomies: dict[int, tuple[nn.Module, Anatomy]] = {}
        self._proofs: dict[Hashable, Anatomy] = {}
        self._own: dict[int, Own] = {}
        self._census = Census()
        self._was_called = False
        self._ordinals = Ordinals()
        self._failures = 0
        if not self.native:
            self._note_own(uncompiled(network))

    @property
    def native(self) -> bool:
        """Whether the rest of the run is left to the model itself."""
        return self.session.tally.header.native is not None

    def anatomy_of(self, network: nn.Module) -> Anatomy:
        """Found once a run for each network: several devices have a copy each. Raises NotThisArchitectureError."""
        plain = uncompiled(network)
        if id(plain) not in self._own:
            self._note_own(plain)
        self._own[id(plain)].check()
        if id(network) not in self._anatomies:  # the entry keeps the network alive, and with it the id
            self._anatomies[id(network)] = network, recognise(plain)
        return self._anatomies[id(network)][1]

    def _note_own(self, network: nn.Module) -> None:
        self._own[id(network)] = Own(network, recognise(network).architecture)

    def go_native(self, reason: str) -> None:
        """The rest of the run is left to the model itself, and nothing is kept for it."""
        self.session.tally.go_native(reason)
        self.session.streams.clear()

    def begin_round(self, x: Any, sigma: Any) -> None:
        """The sampler is about to evaluate its model for the latent x, (B, ...), at `sigma`, (B,)."""
        self._was_called = False
        self._ordinals.begin()
        self.session.streams.begin_round()
        if isinstance(x, Tensor) and self.path.arrive(x, float(sigma.flatten()[0])):
            self.session.streams.start_anew()
            if self.path.keeps_jumping:
                self.go_native(JUMPS)

    def end_round(self, x: Any, sigma: Any, denoised: Any, model_options: Mapping[str, Any]) -> None:
        if not self._was_called:
            step = self.path.position(float(sigma.flatten()[0]))[0]
            what = f"step {step + 1} came out without a call of the network"
            self.go_native(blamed(what, around_the_network(model_options)))
        if isinstance(x, Tensor):
            self.path.leave(x, float(sigma.flatten()[0]), denoised)

    def attempt(self, work: Callable[..., None], *args: Any) -> None:
        """Bookkeeping: what fails in it costs no picture."""
        try:
            with self._freeing():
                work(*args)
        except (comfy.model_management.InterruptProcessingException, *OUT_OF_MEMORY):
            raise
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """No anchor is trusted after a failure; after a second one, nothing is."""
        log.warning("SpeCa: a step could not be followed (%r); it is computed", error, exc_info=error)
        self.session.streams.start_anew()
        self._failures += 1
        if self._failures > 1:
            self.go_native(
                f"SpeCa failed twice in this run ({type(error).__name__}: {error}); the rest is computed natively"
            )

    @contextmanager
    def _freeing(self) -> Iterator[None]:
        """Where memory runs out, anchors go first."""
        try:
            yield
        except OUT_OF_MEMORY:
            self.session.streams.start_anew()
            raise

    def forward(self, model: Any, latent: Any, anatomy: Anatomy, forwards: Forwards, *args: Any, **kwargs: Any) -> Any:
        """Stands in for `diffusion_model.forward(x, timestep, ...)` during one call; `latent` is the sampler's x."""
        self._was_called = True
        try:
            with self._freeing():
                return self._forward(model, latent, anatomy, forwards, args, kwargs)
        except NetworkFaultError as fault:
            raise fault.error from None
        except (comfy.model_management.InterruptProcessingException, *OUT_OF_MEMORY):
            raise
        except Exception as error:
            failure = error
        output = forwards.full(*args, **kwargs)
        self._failed(failure)
        return output

    def _forward(
        self,
        model: Any,
        latent: Any,
        anatomy: Anatomy,
        forwards: Forwards,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        options = kwargs.get("transformer_options", {})
        patched = bool(patch_signature(options))
        architecture = anatomy.architecture
        try:
            for option, why in architecture.native_with:
                if options.get(option) is not None:
                    raise ForecastImpossibleError(why)
            call = describe(model, latent, args[0], options, self.path, kwargs, self._ordinals)
            # Other packs' patches may hold tensors for this very batch: then it is never taken apart.
            splittable = call.n_samples > 1 and not patched and not architecture.mixes_rows
            if architecture.experimental and self.session.config.speculates:
                anatomy = self._proved(model, anatomy, forwards, args, kwargs, len(call.streams))
                splittable = False  # how the network treats the rows of a batch is not known
        except ForecastImpossibleError as refused:
            self.go_native(f"this call cannot be cached ({refused}); the run is computed natively")
            return forwards.full(*args, **kwargs)
        except NotThisArchitectureError as missing:
            self.go_native(str(missing))
            return forwards.full(*args, **kwargs)
        network = BoundNetwork(
            anatomy,
            forwards,
            args,
            kwargs,
            len(call.streams),
            splittable,
            self._census,
            call.streams,
            self.placement,
        )
        follow = call.latent is not None and not self.path.follows(call.latent.x)
        if follow:
            self._look_for_jumps(call)
        try:
            output = self.session.evaluate(call, network)
        except BlocksMissingError as missing:
            output = self._left(missing, network, options)
            follow = False
        except Exception as error:
            if error is network.fault:
                raise NetworkFaultError(error) from None
            raise
        if follow:
            self._remember(call, output)
        return network.restore(output)

    def _left(self, missing: BlocksMissingError, network: BoundNetwork, options: Mapping[str, Any]) -> Tensors:
        """The call's output, where another cache answered for blocks; the rest of the run is left to that."""
        what = f"{missing.how_many} in a call to be computed in full"
        self.go_native(missing.why or blamed(what, in_the_network(options)))
        try:
            return network.past_others(missing)
        except Exception as error:
            raise NetworkFaultError(error) from None

    def _proved(
        self,
        model: Any,
        proposed: Anatomy,
        forwards: Forwards,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        n_rows: int,
    ) -> Anatomy:
        """The anatomy of a network found by its structure, tried out on a copy of this call's inputs."""

        def bind(anatomy: Anatomy) -> BoundNetwork:
            own_args = tuple(copied(a) for a in args)
            own_kwargs = {k: v if k == "transformer_options" else copied(v) for k, v in kwargs.items()}
            return BoundNetwork(anatomy, forwards, own_args, own_kwargs, n_rows, False)

        acting = frozenset(name for name, value in kwargs.items() if value is not None)
        manner = patch_signature(kwargs.get("transformer_options", {})), acting
        key = id(proposed), manner  # `_anatomies` keeps it alive
        if key not in self._proofs:
            self._proofs[key] = prove(uncompiled(model.diffusion_model), proposed, bind, manner)
        return self._proofs[key]

    def _look_for_jumps(self, call: Call) -> None:
        """Of a tile or a crop, whose place only its own stream can tell."""
        assert call.latent is not None
        for row, stream in enumerate(self.session.streams.of(call)):
            x = call.latent.x[row : row + 1]
            if stream.seen is not None and self.path.strayed(stream.seen, x, call.sigma):
                stream.start_anew()

    def _remember(self, call: Call, output: Tensors) -> None:
        level = self.path.level(call.sigma)
        assert call.latent is not None
        if level is None or len(output) != 1 or output[0].shape != call.latent.x.shape:
            return
        for row, stream in enumerate(self.session.streams.of(call)):
            x, out = call.latent.x[row : row + 1].float(), output[0][row : row + 1]
            stream.seen = Seen(call.sigma, x.clone(), level.denoised(x, out))
