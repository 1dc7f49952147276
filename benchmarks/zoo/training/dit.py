"""Train the small DiT on emoji: `python dev.py train dit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.training.comfy_import import import_comfy
from zoo.training.loop import CACHE, MODELS, arguments, mixed_precision, threads, train

if TYPE_CHECKING:
    from torch import Tensor

NETWORK = {
    "input_size": 32,
    "patch_size": 4,
    "in_channels": 3,
    "hidden_size": 128,
    "depth": 16,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "learn_sigma": False,
}
WHAT = """This project's `speca.dit.model.DiT` (the network of Peebles and Xie, arXiv 2212.09748), made small: 16
blocks of width 128, patches of 4x4 pixels, no VAE, no learned variance. Class-conditional; class 48 is the
null class. It predicts the noise (DDPM), with DiT's own linear betas from 1e-4 to 2e-2 over 1000 steps.
Keys are those of the authors' checkpoints, so `Load DiT` reads it. For tests, the benchmark and the demo
graph; of no use for anything else."""


def loss_weight(signal_squared: Tensor) -> Tensor:
    """Weight of the noise's squared error at each timestep, 1 on average: (1000,) alpha-bar -> (1000,).

    Left to itself this error is nearly all about the last details, where the noise cannot be seen; what the picture
    shows is decided where the noise fills it, and there the error is small. A large model has the steps to learn both.
    This one gets the details weighted down as by Min-SNR (arXiv 2303.09556, gamma 5), and the noisy end up, as if the
    picture were predicted, by 6 at most.
    """
    signal_to_noise = signal_squared / (1 - signal_squared)
    weight = (5 / signal_to_noise).clamp(max=1) * (1 / signal_squared).clamp(max=6)
    return weight / weight.mean()


def main() -> None:
    options = arguments(__doc__, steps=3200, batch=32, lr=1.2e-3).parse_args()
    import_comfy(cpu=options.device == "cpu")
    import torch

    from speca.dit.comfy_model import DiTModelConfig
    from speca.dit.model import DiT
    from zoo.training.emoji import NAMES, fetch_sprites, pictures

    torch.set_num_threads(threads(options))
    torch.manual_seed(options.seed)
    sprites = fetch_sprites(CACHE)
    network = DiT(num_classes=len(NAMES), dtype=torch.float32, **NETWORK).initialize_weights()
    torch.nn.init.normal_(network.y_embedder.embedding_table.weight, std=0.5)  # few steps: start with classes apart
    forward = torch.compile(network.predict) if options.compile else network.predict
    settings = DiTModelConfig.sampling_settings
    # ComfyUI's "sqrt_linear" is linear in beta; these are the betas it will sample with
    betas = torch.linspace(settings["linear_start"], settings["linear_end"], settings["timesteps"], dtype=torch.float64)
    assert settings["beta_schedule"] == "sqrt_linear"
    signal_squared = torch.cumprod(1 - betas, 0)  # alpha-bar
    signal, spread = signal_squared.sqrt().float(), (1 - signal_squared).sqrt().float()
    weight = loss_weight(signal_squared).float().to(options.device)

    def loss_of(model, generator, batch):
        labels = torch.randint(len(NAMES), (batch,), generator=generator)
        picture = pictures(sprites, labels, generator)
        noise = torch.randn(picture.shape, generator=generator)
        # beyond step 700 of 1000 nothing is seen of the picture but its mean: three in four are drawn below
        anywhere = torch.rand(batch, generator=generator) < 0.25
        t = (torch.rand(batch, generator=generator) * torch.where(anywhere, len(betas), 0.7 * len(betas))).long()
        noisy = signal[t, None, None, None] * picture + spread[t, None, None, None] * noise
        dropped = torch.rand(batch, generator=generator) < 0.1
        labels = torch.where(dropped, len(NAMES), labels)
        noisy, noise, t, labels = (v.to(options.device) for v in (noisy, noise, t, labels))
        with mixed_precision(options):
            predicted = forward(noisy, t.float(), labels)
        squared = (predicted.float() - noise).square().mean((1, 2, 3))
        return (weight[t] * squared).mean()

    def export(average, facts):
        export_dit(average, facts, list(NAMES))

    train("dit", network, loss_of, export, options)


def export_dit(average, facts: dict, names: list[str]) -> None:
    """Write the model as a DiT checkpoint, load it with the project's loader, sample it and say how good it is."""
    import torch

    from zoo.emoji_pack import judge
    from zoo.training.export import (
        command_line,
        picture_grid,
        quality_row,
        quality_table,
        save_fp16,
        write_card,
        write_references,
    )

    MODELS.mkdir(exist_ok=True)
    write_references()
    path = MODELS / "dit-emoji.safetensors"
    metadata = {
        "config": json.dumps(
            {"num_heads": NETWORK["num_heads"], "input_size": NETWORK["input_size"], "class_names": names}
        ),
        "training": json.dumps({k: v for k, v in facts.items() if k != "losses"}),
        "license": "Apache-2.0",
    }
    size = save_fp16(path, average.state_dict(), metadata)
    lines = []
    with torch.no_grad():
        for cfg in (1.0, 2.5, 4.0):
            samples = sample_dit(path, list(range(len(names))), seed=1, steps=28, cfg=cfg)
            judged = judge.distances(samples, len(names))
            lines.append(quality_row(cfg, judged, torch.arange(len(names))))
            if cfg == 2.5:
                picture_grid(samples).save(MODELS / "dit-emoji.png", optimize=True)
    quality = quality_table(lines, len(names))
    parameters = sum(p.numel() for p in average.parameters())
    write_card(MODELS / "dit-emoji.md", "DiT, emoji", WHAT, command_line(), facts, size, parameters, quality)
    print(f"dit-emoji: {size / 1e6:.2f} MB; cfg | right | distance", *lines, sep="\n", flush=True)


def sample_dit(path: Path, labels: list[int], seed: int, steps: int, cfg: float, sampler: str = "euler"):
    """Pictures (B, 3, 32, 32), nominally in [-1, 1], of the given classes, through the project's own loader."""
    import comfy.sample
    import torch

    from speca.dit.comfy_model import class_conditioning, load_dit

    model = load_dit(path)
    latent = torch.zeros(len(labels), 3, NETWORK["input_size"], NETWORK["input_size"])
    return comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(latent, seed),
        steps,
        cfg,
        sampler,
        "simple",
        class_conditioning(labels),
        class_conditioning([-1] * len(labels)),
        latent,
        disable_pbar=True,
        seed=seed,
    )


if __name__ == "__main__":
    main()
