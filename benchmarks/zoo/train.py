"""Train a model of the zoo: `python dev.py train NAME`; without a name it says which there are.

One loss for every kind of prediction: the error of the denoised picture that ComfyUI's own model gives at a random
noise level, in units of the network's output there. So what is trained is what is sampled, preconditioning and all.
A distilled model's picture is held against what its teacher gives with guidance (arXiv 2210.03142, with a fixed scale).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from measure import environment

environment.prepare()

from .data import source  # noqa: E402
from .specs import ZOO, Spec  # noqa: E402
from .training.comfy_import import keep_freed_memory  # noqa: E402
from .training.loop import (  # noqa: E402
    arguments,
    initialise,
    keep_inputs,
    mixed_precision,
    rotate_faster,
    train,
)

if TYPE_CHECKING:
    from comfy.model_base import BaseModel

NOISE_SPREAD = 1.2
"""Standard deviation of the logarithm of noise over signal."""


def noise_levels(n: int, sampling, mean: float, generator: torch.Generator) -> Tensor:
    """(n,) sigmas of a model: log(noise / signal) normal, most where the picture is decided; one in ten of the
    schedule's own, evenly, so that no end of it is unseen."""
    ratio = torch.exp(mean + NOISE_SPREAD * torch.randn(n, generator=generator))
    sigma = ratio / (1 + ratio) if is_flow(sampling) else ratio
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    if hasattr(sampling, "sigmas"):
        of_schedule = sampling.sigmas[torch.randint(len(sampling.sigmas), (n,), generator=generator)].float()
    else:
        of_schedule = torch.exp(torch.rand(n, generator=generator) * torch.log(torch.tensor(high / low))) * low
    return torch.where(torch.rand(n, generator=generator) < 0.1, of_schedule, sigma).clamp(low, high)


def is_flow(sampling) -> bool:
    import comfy.model_sampling

    return isinstance(sampling, comfy.model_sampling.CONST)


def predicts_noise(sampling) -> bool:
    import comfy.model_sampling

    return type(sampling).calculate_denoised is comfy.model_sampling.EPS.calculate_denoised


def output_gain(sampling, sigma: Tensor) -> Tensor:
    """(n,) how much the denoised picture moves with the network's output."""
    return sampling.calculate_denoised(sigma, torch.ones(len(sigma), 1), torch.zeros(len(sigma), 1))[:, 0].abs()


def weight_of_noise_prediction(sigma: Tensor) -> Tensor:
    """(n,) where the network predicts noise, whose error is nearly all about the last details: those weighted down as
    by Min-SNR (arXiv 2303.09556, gamma 5), the noisy end up by 6 at most."""
    return (5 * sigma.square()).clamp(max=1) * (1 + sigma.square()).clamp(max=6)


Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy latents (B, ...), sigmas (B,), classes (B,)) -> denoised latents (B, ...)."""


def denoiser(base: BaseModel, condition: nn.Module, precision: contextlib.AbstractContextManager | None) -> Denoiser:
    """What `base` takes noisy latents for. precision: what the network's forward runs under."""

    def denoised(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        ((cross_attn, extra),) = condition(labels)
        conds = base.extra_conds(cross_attn=cross_attn, noise=x, device=x.device, **extra)
        with precision or contextlib.nullcontext():
            return base.apply_model(x, sigma, **{name: cond.process_cond(len(x)).cond for name, cond in conds.items()})

    return denoised


def guided(spec: Spec, precision: contextlib.AbstractContextManager | None) -> Denoiser:
    """What the teacher of a distilled model takes noisy latents for, with the guidance that is distilled."""
    from . import build

    model, condition = build.load(spec.teacher)
    denoised = denoiser(model.model, condition, precision)

    def with_guidance(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            negative = denoised(x, sigma, torch.full_like(labels, condition.null))
            return negative.lerp(denoised(x, sigma, labels), spec.guidance)

    return with_guidance


def loss(
    spec: Spec,
    base: BaseModel,
    condition: nn.Module,
    latent: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    precision: contextlib.AbstractContextManager | None = None,
    teacher: Denoiser | None = None,
) -> Tensor:
    """Mean squared error of what `base` denoises of `latent`, (B, ...), in units of its network's output; scalar.

    precision: what the network's forward runs under. teacher: whose prediction is right, in the place of `latent`.
    """
    sampling, denoised = base.model_sampling, denoiser(base, condition, precision)
    noise = torch.randn(latent.shape, generator=generator)
    sigma = noise_levels(len(latent), sampling, spec.noise_mean, generator)
    x = sampling.noise_scaling(sigma.view(-1, *[1] * (latent.ndim - 1)), noise, latent)
    right = latent if teacher is None else teacher(x, sigma, labels)
    error = (denoised(x, sigma, labels) - right).flatten(1).square().mean(1) / output_gain(sampling, sigma).square()
    return (error * weight_of_noise_prediction(sigma) if predicts_noise(sampling) else error).mean()


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in ZOO:
        sys.exit(f"Say which model of the zoo to train: {', '.join(ZOO)}")
    spec = ZOO[sys.argv.pop(1)]
    options = arguments(f"Train {spec.name}", spec.steps, spec.batch, spec.lr).parse_args()

    from . import build

    keep_freed_memory()
    rotate_faster()
    torch.set_num_threads(options.threads or 1)
    torch.manual_seed(options.seed)
    data = source(spec.source)
    base = build.model_of(spec, len(data.classes))
    network = base.diffusion_model.requires_grad_(True)
    if spec.model_class == "DiT":
        network.initialize_weights()
        nn.init.normal_(network.y_embedder.embedding_table.weight, std=0.5)  # few steps: start with classes apart
    else:
        initialise(network, spec.zero, options.seed)
    keep_inputs(network)
    condition, teacher = build.Condition(spec, len(data.classes)), None
    if spec.teacher:
        build.load_weights(spec.teacher, network, condition)
        teacher = guided(spec, mixed_precision(options))
    model = nn.ModuleDict({"diffusion_model": network, "condition": condition})

    def loss_of(model: nn.ModuleDict, generator: torch.Generator, batch: int) -> Tensor:
        pictures, labels = data.draw(batch, spec.size, spec.frames, generator)
        # one in ten without its class, for guidance; where there are no classes, all
        dropped = torch.rand(batch, generator=generator) < (0.1 if data.classes else 2.0)
        labels = torch.where(dropped, len(data.classes), labels)
        latent = build.to_latent(spec, pictures)
        return loss(spec, base, model["condition"], latent, labels, generator, mixed_precision(options), teacher)

    def export(average: nn.ModuleDict, facts: dict) -> None:
        from . import card

        card.export(spec, data, average, facts)

    train(spec.name, model, loss_of, export, options)


if __name__ == "__main__":
    main()
