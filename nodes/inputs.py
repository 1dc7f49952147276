"""What several nodes' schemas and inputs share."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

# Fields of a schema that ComfyUI has come to know: from 0.11 on, and from 0.15 on.
NEWER_FIELDS = ("search_aliases", "essentials_category")


def schema(**fields: Any) -> io.Schema:
    """A node's schema, of the fields that the running ComfyUI knows; one that it never knew is refused as ever."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in fields.items() if name in known or name not in NEWER_FIELDS})


def advanced(an_input: io.Input) -> io.Input:
    """Fold an input away where ComfyUI can (from 0.10); older versions pass the unknown option through unread. A prompt
    may leave it out; the node then has its own default."""
    an_input.extra_dict = {**(an_input.extra_dict or {}), "advanced": True}
    an_input.optional = True
    return an_input


def sampling(runs: str, of_guider: str, **other: str) -> list[io.Input]:
    """What SamplerCustomAdvanced takes. runs: whose it is, as "both runs". of_guider: what more is said of the guider.
    other: an input's tooltip in the place of the usual one."""
    tooltips = {
        "noise": f"The noise of {runs}, as for SamplerCustomAdvanced.",
        "guider": f"A guider whose model has SpeCa: connect its model to the SpeCa node's output. {of_guider}",
        "sampler": f"The sampler of {runs}.",
        "sigmas": f"The steps of {runs}.",
        "latent_image": f"What {runs} start from, empty or not.",
    }
    kinds = (io.Noise, io.Guider, io.Sampler, io.Sigmas, io.Latent)
    said = (tooltips | other).items()
    return [kind.Input(name, tooltip=text) for kind, (name, text) in zip(kinds, said, strict=True)]


def vae_for_psnr() -> io.Input:
    said = "Decodes results, so that PSNR is that of pictures. Without one it is the latents'."
    return io.Vae.Input("vae", optional=True, tooltip=said)
