"""One training loop for all three models: AdamW, warm-up and cosine, EMA, resumable, seeded, progress printed."""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
RUNS = HERE / "runs"
MODELS = HERE.parent / "models"


def arguments(description: str, steps: int, batch: int, lr: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of each worker; 0: the CPU's cores, shared out")
    parser.add_argument("--workers", type=int, default=1, help="processes that share each batch: one per CPU core")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network (needs a C++ compiler)")
    parser.add_argument("--fp32", action="store_true", help="do not run the network's forward under bf16 autocast")
    parser.add_argument("--export", action="store_true", help="only write the model from the last checkpoint")
    parser.add_argument("--note", default="", help="for the card: what else is to be known of this run")
    parser.add_argument("--fresh", action="store_true", help="ignore an existing checkpoint")
    return parser


def threads(options: argparse.Namespace) -> int:
    """Threads of this worker."""
    return options.threads or max(1, (os.cpu_count() or 1) // options.workers)


def keep_inputs(network: nn.Module) -> None:
    """ComfyUI's blocks add to the residual stream in place, which autograd forbids for what a LayerNorm has saved, or
    an attention without a norm before it (LTX-Video's to the text)."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm) or type(module).__name__ == "CrossAttention":
            module.register_forward_pre_hook(lambda _module, inputs: (inputs[0].clone(), *inputs[1:]))


def mixed_precision(options: argparse.Namespace) -> torch.autocast:
    """For the network's forward alone: data and loss stay in fp32. Off where the CPU has no products in bf16: they are
    eight times slower there than fp32."""
    kind = torch.device(options.device).type
    fast = kind != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.autocast(kind, torch.bfloat16, enabled=fast and not options.fp32)


def rotate_as_complex(query: Tensor, key: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """ComfyUI's `apply_rope` as one complex product, which a CPU does faster: (B, H, T, D), (B, 1, T, D / 2, 2, 2)."""
    turn = torch.view_as_complex(torch.stack((rotation[..., 0, 0], rotation[..., 1, 0]), -1))

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).reshape(x.shape).type_as(x)

    return rotate(query), rotate(key)


def rotate_faster() -> None:
    """Use it in FLUX and HunyuanVideo for this process, which trains and does nothing else."""
    import comfy.ldm.flux.math

    comfy.ldm.flux.math.apply_rope = rotate_as_complex


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Newer ComfyUI rotates by kernels that have no gradient, unless it is told that it trains (from 0.14 on).
    Norms that are functions save a copy (see `keep_inputs`).

    In 0.12 nothing can be told, and FLUX, HunyuanVideo, Wan and Qwen-Image cannot be trained.
    """
    from comfy import model_management
    from comfy.ldm import common_dit

    before, rms_norm = getattr(model_management, "in_training", False), common_dit.rms_norm
    model_management.in_training = True
    common_dit.rms_norm = lambda x, *args, **kwargs: rms_norm(x.clone(), *args, **kwargs)
    try:
        yield
    finally:
        model_management.in_training, common_dit.rms_norm = before, rms_norm


def initialise(network: nn.Module, zero: tuple[str, ...], seed: int) -> None:
    """Xavier for every matrix, zero for every bias, one for every norm scale; `zero` names what starts at nothing.

    ComfyUI's layers leave memory uninitialised, so every parameter is written.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(part in name for part in zero):
                parameter.zero_()
            elif parameter.dim() >= 2:
                flat = torch.empty(parameter.shape[0], parameter[0].numel())
                nn.init.xavier_uniform_(flat, generator=generator)
                parameter.copy_(flat.view_as(parameter))
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)


def logit_normal(n: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(n,) times in (0, 1), most of them where the picture is decided; one in ten uniform, so that no end is unseen."""
    t = torch.sigmoid(mean + std * torch.randn(n, generator=generator))
    uniform = torch.rand(n, generator=generator)
    return torch.where(torch.rand(n, generator=generator) < 0.1, uniform, t).clamp(1e-4, 1 - 1e-4)


def start_workers(name: str, options: argparse.Namespace) -> list[subprocess.Popen]:
    """Join the workers of this run; worker 0 starts the others.

    Processes with one thread each, that meet once per step, waste less on a busy machine than threads that meet at
    every layer.
    """
    if options.workers == 1:
        return []
    meeting = RUNS / f"{name}.meeting"
    others = []
    if options.rank == 0:
        meeting.unlink(missing_ok=True)
        for rank in range(1, options.workers):
            others.append(subprocess.Popen([sys.executable, *sys.argv, "--rank", str(rank)], env=os.environ))
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=options.rank, world_size=options.workers)
    return others


def average_gradients(parameters: list[nn.Parameter], loss: Tensor, workers: int) -> float:
    """Replace all gradients by their mean over the workers; returns the mean loss."""
    if workers == 1:
        return loss.item()
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), loss.detach().view(1)])
    dist.all_reduce(flat)
    flat /= workers
    parts = flat[:-1].split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
    return flat[-1].item()


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@differentiable()
def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[nn.Module, torch.Generator, int], Tensor],
    export: Callable[[nn.Module, dict], None],
    options: argparse.Namespace,
) -> None:
    """Train `model`, keep a checkpoint in `runs/<name>.pt`, write the EMA weights through `export`.

    Args:
        name: of the run.
        model: all that is trained.
        loss_of: (model, generator, batch size) -> scalar loss. Draws its data from the generator alone, which is
            seeded by step, so that a resumed run sees what an uninterrupted one would have.
        export: (model with EMA weights, facts for the card) -> None.
        options: of `arguments`.
    """
    RUNS.mkdir(parents=True, exist_ok=True)
    others = [] if options.export else start_workers(name, options)
    checkpoint = RUNS / f"{name}.pt"
    average = copy.deepcopy(model).requires_grad_(False)
    model.to(options.device).train()
    average.to(options.device).eval()
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=0.01)
    first, seconds, losses = 0, 0.0, []
    if checkpoint.exists() and not options.fresh:
        state = torch.load(checkpoint, map_location=options.device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first, seconds, losses = state["step"], state["seconds"], state["losses"]
        if options.rank == 0:
            print(f"{name}: resuming at step {first}", flush=True)

    def save(step: int) -> None:
        if options.rank != 0:
            return
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "seconds": seconds,
                "losses": losses,
            },
            temporary,
        )
        temporary.replace(checkpoint)

    def facts(step: int) -> dict:
        recent = losses[-200:]
        return {
            "steps": step,
            "planned_steps": options.steps,
            "batch": options.batch,
            "lr": options.lr,
            "seed": options.seed,
            "minutes": round(seconds / 60, 1),
            "device": options.device,
            "loss": round(sum(recent) / max(1, len(recent)), 4),
            "note": options.note,
            "losses": losses,
        }

    if not options.export:
        parameters = list(model.parameters())
        report, running = time.perf_counter(), 0.0
        for step in range(first, options.steps):
            begun = time.perf_counter()
            generator = torch.Generator().manual_seed((options.seed * 1_000_003 + step) * 64 + options.rank)
            rate = learning_rate(step, options)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with sdpa_kernel(SDPBackend.MATH) if options.device == "cpu" else contextlib.nullcontext():
                # on a CPU, for so few tokens, plain matrix products are faster than the fused kernel
                loss = loss_of(model, generator, options.batch // options.workers)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
            mean_loss = average_gradients(parameters, loss, options.workers)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            decay = min(options.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
            losses.append(round(mean_loss, 5))
            running += losses[-1]
            seconds += time.perf_counter() - begun
            if (step + 1) % 50 == 0 and options.rank == 0:
                each = (time.perf_counter() - report) / 50
                left = each * (options.steps - step - 1) / 60
                print(
                    f"{name}: step {step + 1}/{options.steps}  loss {running / 50:.4f}  lr {rate:.2e}  "
                    f"{each:.2f} s/step  {left:.0f} min left",
                    flush=True,
                )
                report, running = time.perf_counter(), 0.0
            if (step + 1) % options.save_every == 0:
                save(step + 1)
        first = options.steps
        save(first)
    if options.rank != 0:
        return
    for other in others:
        other.wait()
    export(average, facts(first))
