"""Train the small HunyuanVideo (ComfyUI's own class) on emoji clips: `python dev.py train hunyuan_video`.

Its blocks are FLUX's, so it starts from the small FLUX where that lies in `benchmarks/zoo/models`: every frame is a
picture that FLUX can draw already, and what is left to learn is time.
"""

from __future__ import annotations

from pathlib import Path

from zoo.training.comfy_import import import_comfy
from zoo.training.loop import (
    CACHE,
    MODELS,
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
    "image_model": "hunyuan_video",
    "in_channels": 3,
    "out_channels": 3,
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "hidden_size": 128,
    "mlp_ratio": 1.75,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 14,
    "axes_dim": [16, 24, 24],
    "theta": 1000,
    "patch_size": [1, 4, 4],
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}
FRAMES = 5
SHIFT = 3.0
ZERO = ("_mod.lin", "modulation.lin", "adaLN_modulation", "final_layer.linear")
WHAT = f"""ComfyUI's own `comfy.ldm.hunyuan_video.model.HunyuanVideo`, made small: 2 double and 14 single blocks of
width 128, patches of 1x4x4 pixels, {FRAMES} frames, no VAE. A class is given by four context tokens and the
pooled vector, a motion by two more tokens and an addition to that vector; the null class and motion are the
negative conditioning. Flow matching, sampled with a shift of {SHIFT:g} (HunyuanVideo's 7 is meant for clips
of a thousand times as many pixels). Its picture layers started from `flux-emoji`. For tests, the benchmark
and the demo graph; of no use for anything else."""


def start_from_flux(model, path: Path) -> None:
    """Take over the FLUX's weights wherever the two have the same layer; the rest keeps its own start.

    HunyuanVideo's MLPs are a little narrower here: the units with the least weight in and out are left behind. It has
    one double block less, and one single block more, which starts as the identity.
    """
    import torch
    from safetensors.torch import load_file

    from zoo.emoji_pack.versions import renamed

    target = model.state_dict()
    hidden = UNET["hidden_size"]
    width = int(hidden * UNET["mlp_ratio"])
    last_double = UNET["depth"] - 1
    taken = {}

    def origin_of(name):
        origin = name.replace("txt_in.input_embedder", "txt_in").replace("img_in.proj", "img_in")
        # its last double block is followed by the single ones, as FLUX's last one is
        return origin.replace(f"diffusion_model.double_blocks.{last_double}.", "diffusion_model.double_blocks.2.")

    source = renamed({k: v.float() for k, v in load_file(path).items()}, {origin_of(name) for name in target})

    def keep(first, second):
        strength = first.norm(dim=1) * second.norm(dim=0)
        return strength.topk(width).indices.sort().values

    for name in target:
        origin = origin_of(name)
        if origin not in source:
            continue
        value = source[origin]
        if "single_blocks" in origin and ("linear1" in origin or "linear2" in origin):
            base = origin.rsplit(".", 2)[0]
            first, second = source[f"{base}.linear1.weight"][3 * hidden :], source[f"{base}.linear2.weight"][:, hidden:]
            units = keep(first, second)
            if "linear1" in origin:
                value = torch.cat((value[: 3 * hidden], value[3 * hidden :][units]))
            elif origin.endswith("weight"):
                value = torch.cat((value[:, :hidden], value[:, hidden:][:, units]), 1)
        elif "_mlp." in origin:
            base = origin.rsplit(".", 2)[0]
            units = keep(source[f"{base}.0.weight"], source[f"{base}.2.weight"])
            if origin.startswith(f"{base}.0."):
                value = value[units]
            elif origin.endswith("weight"):
                value = value[:, units]
        taken[name] = value.reshape(target[name].shape)
    model.load_state_dict({**target, **taken})
    print(f"started from {path.name}: {len(taken)} of {len(target)} tensors", flush=True)


def main() -> None:
    parser = arguments(__doc__.split("\n")[0], steps=1200, batch=8, lr=6e-4)
    parser.add_argument("--init", type=Path, default=MODELS / "flux-emoji.safetensors", help="FLUX to start from")
    options = parser.parse_args()
    import_comfy(cpu=options.device == "cpu")
    import torch

    from zoo.emoji_pack.models import ConditionTable, EmojiConfig, build
    from zoo.training.emoji import MOTIONS, NAMES, clips, fetch_sprites
    from zoo.training.export import export_model

    torch.set_num_threads(threads(options))
    torch.manual_seed(options.seed)
    sprites = fetch_sprites(CACHE)
    config = EmojiConfig(
        kind="hunyuan_video",
        unet=UNET,
        classes=list(NAMES),
        frames=FRAMES,
        motions=list(MOTIONS),
        motion_tokens=2,
        sampling={"shift": SHIFT},
    )
    network = build(config).diffusion_model
    initialise(network, ZERO, options.seed)
    model = torch.nn.ModuleDict({"diffusion_model": network, "condition": ConditionTable(config)})
    if options.init.is_file():
        torch.nn.init.normal_(model["condition"].motion_pooled.weight, std=0.3)
        start_from_flux(model, options.init)
    keep_inputs(network)
    rotate_faster()
    forward = torch.compile(network._forward) if options.compile else network._forward

    def loss_of(model, generator, batch):
        labels = torch.randint(len(NAMES), (batch,), generator=generator)
        motions = torch.randint(len(MOTIONS), (batch,), generator=generator)
        clip = clips(sprites, labels, motions, FRAMES, generator)
        noise = torch.randn(clip.shape, generator=generator)
        t = logit_normal(batch, 0.3, 1.0, generator)
        dropped = torch.rand(batch, generator=generator)
        # one in ten without any condition, for guidance; one in ten with a class of unknown motion
        labels = torch.where(dropped < 0.1, len(NAMES), labels)
        motions = torch.where(dropped < 0.2, len(MOTIONS), motions)
        clip, noise, t, labels, motions = (v.to(options.device) for v in (clip, noise, t, labels, motions))
        context, pooled = model["condition"](labels, motions)
        time = t[:, None, None, None, None]
        with mixed_precision(options):
            velocity = forward((1 - time) * clip + time * noise, 1000 * t, context, pooled)
        return (velocity.float() - (noise - clip)).square().mean()

    def export(average, facts):
        export_model(config, average, facts, "HunyuanVideo, emoji clips", WHAT, "hunyuan-video-emoji")

    train("hunyuan_video", model, loss_of, export, options)


if __name__ == "__main__":
    main()
