"""Train the small FLUX (ComfyUI's own class) on emoji: `python dev.py train flux`."""

from __future__ import annotations

from zoo.training.comfy_import import import_comfy
from zoo.training.loop import (
    CACHE,
    arguments,
    initialise,
    keep_inputs,
    logit_normal,
    mixed_precision,
    rotate_faster,
    threads,
    train,
)

UNET = {
    "image_model": "flux",
    "in_channels": 3,
    "out_channels": 3,
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "hidden_size": 128,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 3,
    "depth_single_blocks": 13,
    "axes_dim": [16, 24, 24],
    "theta": 1000,
    "patch_size": 4,
    "qkv_bias": True,
    "guidance_embed": False,
}
WHAT = """ComfyUI's own `comfy.ldm.flux.model.Flux`, made small: 3 double and 13 single blocks of width 128, patches
of 4x4 pixels, no VAE. A class is given by four context tokens and the pooled vector; the null class is the
negative conditioning. Flow matching, sampled with FLUX's own shift of 1.15. For tests, the benchmark and
the demo graph; of no use for anything else."""
ZERO = ("_mod.lin", "modulation.lin", "adaLN_modulation", "final_layer.linear")


def main() -> None:
    options = arguments(__doc__, steps=2400, batch=32, lr=1.2e-3).parse_args()
    import_comfy(cpu=options.device == "cpu")
    import torch

    from zoo.emoji_pack.models import ConditionTable, EmojiConfig, build
    from zoo.training.emoji import NAMES, fetch_sprites, pictures
    from zoo.training.export import export_model

    torch.set_num_threads(threads(options))
    torch.manual_seed(options.seed)
    sprites = fetch_sprites(CACHE)
    config = EmojiConfig(kind="flux", unet=UNET, classes=list(NAMES))
    network = build(config).diffusion_model
    initialise(network, ZERO, options.seed)
    model = torch.nn.ModuleDict({"diffusion_model": network, "condition": ConditionTable(config)})
    keep_inputs(network)
    rotate_faster()
    forward = torch.compile(network._forward) if options.compile else network._forward

    def loss_of(model, generator, batch):
        labels = torch.randint(len(NAMES), (batch,), generator=generator)
        picture = pictures(sprites, labels, generator)
        noise = torch.randn(picture.shape, generator=generator)
        t = logit_normal(batch, 0.3, 1.0, generator)
        dropped = torch.rand(batch, generator=generator) < 0.1
        labels = torch.where(dropped, len(NAMES), labels)
        picture, noise, t, labels = (v.to(options.device) for v in (picture, noise, t, labels))
        context, pooled = model["condition"](labels)
        time = t[:, None, None, None]
        with mixed_precision(options):
            velocity = forward((1 - time) * picture + time * noise, t, context, pooled)
        return (velocity.float() - (noise - picture)).square().mean()

    def export(average, facts):
        export_model(config, average, facts, "FLUX, emoji", WHAT, "flux-emoji")

    train("flux", model, loss_of, export, options)


if __name__ == "__main__":
    main()
