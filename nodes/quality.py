"""How close a result is to the uncached one, as a node tells it."""

from __future__ import annotations

from ..speca.comfyui.asked import tensors_of
from ..speca.comparison import is_picture, mean_square, psnr


def psnr_of_latents(vae, latent, reference) -> float:
    """In dB, of decoded pictures; of latents without a vae that decodes any, the reference's range being the peak."""
    samples, references = (tensors_of(each)[0] for each in (latent, reference))
    if vae is not None:
        pictures = [vae.decode(each) for each in (samples, references)]
        if all(map(is_picture, pictures)):
            return psnr(mean_square(*(each.flatten(0, -4) for each in pictures)).mean().item())
    span = float(references.max() - references.min()) or 1.0
    return psnr(mean_square(samples / span, references / span).mean().item())
