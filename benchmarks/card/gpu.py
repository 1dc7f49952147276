"""What SpeCa's calls cost on real hardware: networks of the true sizes, random bf16 weights, in the real ComfyUI.

    python benchmarks/card/gpu.py                        needs a CUDA device; under eight minutes, unattended
    python benchmarks/card/gpu.py --device cpu --tiny    tries every line of it with tiny networks
    python benchmarks/card/gpu.py --table FILE ...       a table of kept figures; a network in two files is the first's

Random weights cost what trained ones cost; nothing about quality or acceptance can be read off them. For each
network: milliseconds of an uncached step, of a full, an accepted, a trusted and a rejected one with SpeCa attached, of
the parts of an accepted one, the cache's size, and the speedup that follows at a given acceptance. A step is everything
between the sampler and the network and back (`PREDICT_NOISE`): guidance, ComfyUI's own work and SpeCa's. One case makes
ComfyUI believe in a card of 12 GB, so that most weights are fetched from system memory in every call. The result is a
JSON file in `benchmarks/results`, named after the device.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

# It is run as it is on machines with an environment of their own.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from measure import environment

ORDER = 2
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)
CACHE_GOAL_BYTES = {"flux-1024px": 0.2e9}
ACCEPTED_GOAL_OVER_ONE_BLOCK = 0.01
VERIFICATION_GOAL = 0.035
"""The paper's section 3.2: 1.67 to 3.5 % of a full call."""
SLOW_SECONDS = 5.0
"""A call that takes longer is measured as few times as will do."""
BRIEF_CALLS = 8


@dataclass(frozen=True)
class Network:
    """A network of true size. `latent` is of one sample; `text` and `pooled` the widths of its conditioning."""

    name: str
    build: Callable[[torch.dtype, torch.device], Any]
    latent: tuple[int, ...]
    conditioning: Callable[[], list[list[Any]]]
    cfg: float = 1.0
    gigabytes: float = 0.0
    """Free memory it needs, roughly: below it the case is left out with a word."""
    card_gigabytes: float | None = None
    """What ComfyUI is told that the card has, for weights that do not fit; None for what it has."""


@dataclass
class Figures:
    """What was measured of one network; milliseconds are medians. None where it could not be."""

    name: str
    blocks: int = 0
    latent: tuple[int, ...] = ()
    skipped: str | None = None
    brief: bool = False
    """Each kind of call was timed once to three times only."""
    native_ms: float | None = None
    full_ms: float | None = None
    accepted_ms: float | None = None
    trusted_ms: float | None = None
    last_block_ms: float | None = None
    """A step of the unpatched model that runs its last block alone: what no accepted one can be faster than."""
    rejected_ms: float | None = None
    accepted_anchors_in_system_memory_ms: float | None = None
    parts_ms: dict[str, float] = field(default_factory=dict)
    cache_bytes: int | None = None
    peak_bytes: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)


# --- The networks -----------------------------------------------------------------------------------------------------

_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
_HUNYUAN_VIDEO = {
    **_FLUX,
    "image_model": "hunyuan_video",
    "patch_size": [1, 2, 2],
    "depth": 20,
    "depth_single_blocks": 40,
    "theta": 256,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
}


def _core(model_class: str, config: dict[str, Any]) -> Callable[[torch.dtype, torch.device], Any]:
    def build(dtype: torch.dtype, device: torch.device) -> Any:
        import comfy.supported_models

        from zoo.emoji_pack import versions

        model_config = getattr(comfy.supported_models, model_class)(versions.fitted(config))
        model_config.set_inference_dtype(dtype, None)
        return model_config.get_model({}, "", device=device)

    return build


def _dit(input_size: int, **smaller: int) -> Callable[[torch.dtype, torch.device], Any]:
    def build(dtype: torch.dtype, device: torch.device) -> Any:
        from speca.dit.checkpoint import DiTConfig
        from speca.dit.comfy_model import DiTModelConfig

        sizes = {"hidden_size": 1152, "depth": 28, "num_heads": 16, **smaller}
        config = DiTConfig(
            input_size=input_size,
            patch_size=2,
            in_channels=4,
            mlp_ratio=4.0,
            num_classes=1000,
            learn_sigma=True,
            **sizes,
        )
        model_config = DiTModelConfig(config)
        model_config.set_inference_dtype(dtype, None)
        return model_config.get_model({}, "", device=device)

    return build


def _text(tokens: int, width: int, pooled: int, guidance: float) -> Callable[[], list[list[Any]]]:
    def conditioning() -> list[list[Any]]:
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(1, tokens, width, generator=generator)
        return [[features, {"pooled_output": torch.randn(1, pooled, generator=generator), "guidance": guidance}]]

    return conditioning


def _label() -> list[list[Any]]:
    from speca.dit.comfy_model import class_conditioning

    return class_conditioning([207])


def networks(tiny: bool) -> list[Network]:
    """DiT first, the longest video last: what time does not suffice for is what is dearest."""
    if tiny:
        small = {"hidden_size": 64, "num_heads": 4, "axes_dim": [4, 6, 6], "context_in_dim": 32, "vec_in_dim": 32}
        small |= {"depth": 2, "depth_single_blocks": 4}
        return [
            Network("dit-256px", _dit(8, hidden_size=48, depth=4, num_heads=4), (4, 8, 8), _label, cfg=4.0),
            Network("flux-1024px", _core("Flux", {**_FLUX, **small}), (16, 8, 8), _text(7, 32, 32, 3.5)),
            Network(
                "hunyuan-video-480x640x65",
                _core("HunyuanVideo", {**_HUNYUAN_VIDEO, **small}),
                (16, 3, 8, 8),
                _text(7, 32, 32, 6.0),
            ),
        ]
    flux, flux_prompt = _core("Flux", _FLUX), _text(512, 4096, 768, 3.5)
    video, prompt = _core("HunyuanVideo", _HUNYUAN_VIDEO), _text(256, 4096, 768, 6.0)
    return [
        Network("dit-256px", _dit(32), (4, 32, 32), _label, cfg=4.0, gigabytes=4),
        Network("dit-512px", _dit(64), (4, 64, 64), _label, cfg=4.0, gigabytes=4),
        Network("flux-1024px", flux, (16, 128, 128), flux_prompt, gigabytes=28),
        Network("flux-1024px-on-12gb", flux, (16, 128, 128), flux_prompt, gigabytes=28, card_gigabytes=12),
        Network("hunyuan-video-480x640x65", video, (16, 17, 60, 80), prompt, gigabytes=36),
        Network("hunyuan-video-720x1280x129", video, (16, 33, 90, 160), prompt, gigabytes=60),
    ]


@torch.no_grad()
def randomise(module: torch.nn.Module) -> None:
    """ComfyUI's layers come uninitialised. Matrices keep the scale of their input; vectors are near 0 or 1."""
    for name, parameter in module.named_parameters():
        if parameter.dim() >= 2:
            parameter.normal_(0.0, 1 / math.sqrt(max(1, parameter[0].numel())))
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.02)
        else:
            parameter.fill_(1.0)


# --- Measuring --------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def __call__(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def milliseconds(self, work: Callable[[], Any], times: int) -> float:
        """Median of `times` runs after one that is not counted."""
        work()
        taken = []
        for _ in range(times):
            began = self()
            work()
            taken.append((self() - began) * 1000)
        return median(taken)


@contextmanager
def card_of(gigabytes: float | None, device: torch.device) -> Iterator[None]:
    """ComfyUI plans for a card of that size, as its `--reserve-vram` does it."""
    import comfy.model_management

    if gigabytes is None or device.type != "cuda":
        yield
        return
    reserved = comfy.model_management.EXTRA_RESERVED_VRAM
    total = torch.cuda.get_device_properties(device).total_memory
    comfy.model_management.EXTRA_RESERVED_VRAM = max(reserved, total - gigabytes * 1e9)
    try:
        yield
    finally:
        comfy.model_management.EXTRA_RESERVED_VRAM = reserved


def measure(network: Network, dtype: torch.dtype, device: torch.device, deadline: float) -> Figures:
    import comfy.model_management
    import comfy.model_patcher

    from speca.adapters import recognise

    figures = Figures(network.name, latent=network.latent)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] / 1e9
        if free < network.gigabytes:
            figures.skipped = f"{free:.0f} GB free, about {network.gigabytes:.0f} needed"
            return figures
    model = network.build(dtype, device)
    model.to(device=device, dtype=dtype)
    randomise(model.diffusion_model)
    offload_device = device
    if network.card_gigabytes is not None:
        offload_device = torch.device("cpu")
        model.to(offload_device)
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=offload_device)
    anatomy = recognise(model.diffusion_model)
    figures.blocks = anatomy.n_blocks
    clock = Clock(device)
    try:
        with card_of(network.card_gigabytes, device):
            _measure_calls(figures, network, patcher, anatomy, clock, device, deadline)
    except torch.OutOfMemoryError:
        figures.skipped = "out of memory"
    finally:
        comfy.model_management.unload_all_models()
        del model, patcher, anatomy
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return figures


def _measure_calls(
    figures: Figures, network: Network, patcher: Any, anatomy: Any, clock: Clock, device: torch.device, deadline: float
) -> None:
    from speca.adapters.base import exchanged_forwards

    native: list[float] = []
    entering: list[Tensor] = []
    _reset_peak(device)
    with entering_block(anatomy, entering):
        sample(watched(patcher, clock, native), network, 1)  # the first call sets everything up
    if native[-1] < SLOW_SECONDS * 1000:
        sample(watched(patcher, clock, native), network, 2)
    one = native[-1] / 1000
    left = deadline - time.perf_counter()
    if left < BRIEF_CALLS * one:
        figures.native_ms = native[-1]
        figures.skipped = f"{one:.1f} s for one call, too long for the time that is left"
        return
    figures.brief = one > SLOW_SECONDS or left < 60 * one
    rounds = 1 if figures.brief else max(1, min(5, int(left / 4 / (20 * one + 1))))
    figures.peak_bytes["native"] = _peak(device)
    native = [native[-1]] if figures.brief else []
    shortened: list[float] = []

    times: dict[str, list[float]] = {"full": [], "accepted": [], "trusted": [], "rejected": []}
    block_ms: list[float] = []
    _reset_peak(device)
    for n in range(rounds):
        last = n == rounds - 1
        # In turns, or a processor that slows down for a while would tell on one kind of step alone.
        if not figures.brief:
            native += _native_steps(network, patcher, clock, 4)
        with exchanged_forwards(anatomy.untouched):
            shortened += _native_steps(network, patcher, clock, 5)
        # Three anchors, then forecasts that all stand; such of which only the first is checked; then forecasts that all
        # fail, of which each leaves an anchor.
        with timed_block(anatomy, clock, block_ms if last else []):
            _run(figures, network, patcher, clock, times, 1e30, ORDER + 1, 2 if figures.brief else 5)
        checked_once: dict[str, list[float]] = {"full": [], "accepted": [], "trusted": times["trusted"]}
        _run(
            figures, network, patcher, clock, checked_once, 1e30, ORDER + 1, 2 if figures.brief else 5, check_every=100
        )
        _run(figures, network, patcher, clock, times, 1e-30, 2, 2 if figures.brief else 4)
    figures.peak_bytes["speca"] = _peak(device)
    figures.native_ms, figures.last_block_ms = median(native), median(shortened)
    figures.full_ms = median(times["full"])
    figures.calls = {outcome: len(taken) for outcome, taken in times.items()}
    if times["accepted"]:
        figures.accepted_ms = median(times["accepted"])
    if times["trusted"]:
        figures.trusted_ms = median(times["trusted"])
    if times["rejected"]:
        figures.rejected_ms = median(times["rejected"])
    if device.type == "cuda" and not figures.brief:
        elsewhere: dict[str, list[float]] = {"full": [], "accepted": [], "rejected": []}
        _run(figures, network, patcher, clock, elsewhere, 1e30, ORDER + 1, 5, cache_device="cpu")
        figures.accepted_anchors_in_system_memory_ms = median(elsewhere["accepted"])
    figures.parts_ms = parts(entering, network, clock, device, rounds)
    if block_ms:
        figures.parts_ms["block"] = median(block_ms[ORDER + 1 :])
    figures.derived = derived(figures)


def _native_steps(network: Network, patcher: Any, clock: Clock, steps: int) -> list[float]:
    """Milliseconds of all steps of an unpatched run but the first, which has the longest to set up."""
    taken: list[float] = []
    sample(watched(patcher, clock, taken), network, steps)
    return taken[1:]


def _run(
    figures: Figures,
    network: Network,
    patcher: Any,
    clock: Clock,
    times: dict[str, list[float]],
    threshold: float,
    warmup: int,
    further: int,
    cache_device: str = "gpu",
    check_every: int = 1,
) -> None:
    """One sampling run with `warmup` full calls and `further` ones; their milliseconds go to `times`, by outcome."""
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    config = SpeCaConfig(
        threshold=threshold,
        order=ORDER,
        warmup_steps=warmup,
        max_consecutive=100,
        noise_gain_limit=1e6,
        threshold_end_factor=1.0,
        cache_device=cache_device,
        check_every=check_every,
    )
    taken: list[float] = []
    patched = attach(watched(patcher, clock, taken), config)
    sample(patched, network, warmup + further)
    record = attachment_of(patched).run_of()
    if record.header.native:
        raise RuntimeError(f"{network.name} ran natively: {record.header.native}")
    for call, ms in list(zip(record.calls, taken, strict=True))[1:]:
        times[call.outcome].append(ms)
    figures.cache_bytes = max(figures.cache_bytes or 0, record.totals.cache_bytes)


def sample(patcher: Any, network: Network, steps: int) -> None:
    import comfy.sample

    positive = network.conditioning()
    noise = torch.randn((1, *network.latent), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        comfy.sample.sample(
            patcher,
            noise,
            steps,
            network.cfg,
            "euler",
            "simple",
            positive,
            positive,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )


def watched(patcher: Any, clock: Clock, into: list[float]) -> Any:
    """A clone of the unpatched model that notes the milliseconds of every step of a sampler that calls it once a step.

    Put on before SpeCa, it wraps SpeCa's own wrappers too.
    """
    from comfy.patcher_extension import WrappersMP

    def predict_noise(executor: Any, *args: Any, **kwargs: Any) -> Any:
        began = clock()
        result = executor(*args, **kwargs)
        into.append((clock() - began) * 1000)
        return result

    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "benchmark_clock", predict_noise)
    return clone


def timed_block(anatomy: Any, clock: Clock, into: list[float]) -> Any:
    """Notes the milliseconds of the verification block, in full and in accepted calls."""
    from speca.adapters.base import exchanged_forward

    block = anatomy.verification_block
    native = block.forward

    @functools.wraps(native)  # it keeps nothing: SpeCa may take it for the block's own
    def forward(*args: Any, **kwargs: Any) -> Any:
        began = clock()
        result = native(*args, **kwargs)
        into.append((clock() - began) * 1000)
        return result

    return exchanged_forward(block, forward)


def entering_block(anatomy: Any, into: list[Tensor]) -> Any:
    """Keeps the last call's tensors that enter the verification block, as empty ones of the same shape and dtype."""
    from speca.adapters.base import exchanged_forward

    block, stage = anatomy.verification_block, anatomy.verification_stage
    native = block.forward

    @functools.wraps(native)
    def forward(*args: Any, **kwargs: Any) -> Any:
        into[:] = [torch.empty_like(t, device="meta") for t in stage.needed(block, args, kwargs)]
        return native(*args, **kwargs)

    return exchanged_forward(block, forward)


def parts(
    entering: list[Tensor], network: Network, clock: Clock, device: torch.device, rounds: int
) -> dict[str, float]:
    """The forecast and the comparison on tensors of the true shapes. The rest of an accepted call is the network's."""
    from speca.history import combine
    from speca.verify import relative_l2

    weights = (1.0, -3.0, 3.0)

    def anchors(like: Tensor) -> list[Tensor]:
        return [torch.randn(like.shape, dtype=like.dtype, device=device) for _ in weights]

    def forecast_milliseconds() -> float:
        rows = [anchors(tensor[row : row + 1]) for tensor in entering for row in range(tensor.shape[0])]
        return clock.milliseconds(lambda: [combine(weights, row, device) for row in rows], 3 * rounds)

    with torch.inference_mode():
        found = {"forecast": forecast_milliseconds()}
        n_rows = entering[0].shape[0]
        outputs = anchors(torch.empty((n_rows, *network.latent), dtype=entering[0].dtype, device="meta"))
        found["forecast_output"] = clock.milliseconds(lambda: combine(weights, outputs, device), 3 * rounds)
        one, other = outputs[:2]
        found["compare"] = clock.milliseconds(lambda: relative_l2(one, other).tolist(), 3 * rounds)
    return found


def derived(figures: Figures) -> dict[str, Any]:
    """Shares, goals and the speedups that follow."""
    full, accepted, rejected = figures.native_ms, figures.accepted_ms, figures.rejected_ms
    assert full is not None
    found: dict[str, Any] = {"one_block_share": 1 / figures.blocks}
    if accepted is not None:
        found["accepted_share"] = accepted / full
        goal = 1 / figures.blocks + ACCEPTED_GOAL_OVER_ONE_BLOCK
        found["accepted_goal"] = goal
        found["accepted_goal_met"] = accepted / full <= goal
        if figures.trusted_ms is not None:
            found["trusted_share"] = figures.trusted_ms / full
            half = (accepted + figures.trusted_ms) / 2 / full
            found["speedup_at_acceptance_with_every_second_trusted"] = {f"{a:g}": speedup(a, half) for a in ACCEPTANCES}
        if figures.last_block_ms is not None:
            found["last_block_share"] = figures.last_block_ms / full
        verification = sum(figures.parts_ms.get(name, 0.0) for name in ("block", "compare", "forecast_output"))
        found["verification_share"] = verification / full
        found["verification_goal"] = VERIFICATION_GOAL
        found["verification_goal_met"] = verification / full <= VERIFICATION_GOAL
        found["speedup_at_acceptance"] = {f"{a:g}": speedup(a, accepted / full) for a in ACCEPTANCES}
        if rejected is not None:
            wasted = (rejected - full) / full
            found["rejection_overhead_share"] = wasted
            found["speedup_at_acceptance_with_5_percent_rejected"] = {
                f"{a:g}": speedup(a, accepted / full, 0.05, wasted) for a in ACCEPTANCES
            }
    if figures.full_ms is not None:
        found["full_call_overhead_share"] = figures.full_ms / full - 1
    goal_bytes = CACHE_GOAL_BYTES.get(figures.name)
    if goal_bytes and figures.cache_bytes is not None:
        found["cache_goal_bytes"] = goal_bytes
        found["cache_goal_met"] = figures.cache_bytes <= goal_bytes
    return found


def speedup(accepted: float, accepted_share: float, rejected: float = 0.0, rejection_overhead: float = 0.0) -> float:
    """Of a run in which the shares `accepted` and `rejected` of the calls end so; costs in full calls."""
    return 1 / ((1 - accepted) + accepted * accepted_share + rejected * rejection_overhead)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--only", help="names of networks, comma-separated")
    parser.add_argument("--minutes", type=float, default=7.0, help="stop starting new networks after this long")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print a table of these results")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu-<device>.json")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(path.read_text()) for path in options.table))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured. (`--device cpu --tiny` tries the script.)")
        return
    if options.device == "cpu" and not options.tiny:
        sys.exit("On a CPU only --tiny networks are run.")
    deadline = time.perf_counter() + options.minutes * 60
    environment.prepare(gpu=options.device == "cuda")
    device = torch.device(options.device)
    dtype = torch.float32 if options.tiny else torch.bfloat16
    title = torch.cuda.get_device_name() if device.type == "cuda" else "cpu-tiny"
    path = options.out or environment.RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}.json"
    result: dict[str, Any] = {"device": title, "order": ORDER, "versions": environment.versions(), "networks": []}
    if device.type == "cuda":
        result["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    wanted = options.only.split(",") if options.only else None
    for network in networks(options.tiny):
        if wanted and network.name not in wanted:
            continue
        if time.perf_counter() > deadline:
            figures = Figures(network.name, latent=network.latent, skipped="no time was left")
        else:
            figures = measure(network, dtype, device, deadline)
        result["networks"].append(asdict(figures))
        print(in_words(figures), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")  # after each, so that an end by force loses little
    print(path)


def table(results: Iterable[dict[str, Any]]) -> str:
    """Markdown, a line for each network, from what `main` wrote."""
    lines = [
        "| network | device | uncached, ms | its last block alone | accepted | trusted | full | rejected "
        "| verification | cache, GB | at 80 % accepted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    shown: set[str] = set()
    for result in results:
        for found in result["networks"]:
            if found["skipped"] or found["name"] in shown:
                continue
            shown.add(found["name"])
            native, shares = found["native_ms"], found["derived"]

            def share(name: str, native: float = native, found: dict[str, Any] = found) -> str:
                return "-" if found.get(name) is None else f"{found[name] / native:.1%}"

            cells = [
                found["name"],
                result["device"],
                f"{native:,.1f}",
                share("last_block_ms"),
                share("accepted_ms"),
                share("trusted_ms"),
                share("full_ms"),
                share("rejected_ms"),
                f"{shares['verification_share']:.1%}",
                f"{found['cache_bytes'] / 1e9:.3f}",
                f"{shares['speedup_at_acceptance']['0.8']:.2f}x",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_words(figures: Figures) -> str:
    if figures.skipped:
        return f"{figures.name}: left out, {figures.skipped}"
    found = figures.derived

    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    parts = ", ".join(f"{name} {value:.2f}" for name, value in figures.parts_ms.items())
    peaks = ", ".join(f"{name} {value / 1e9:.1f} GB" for name, value in figures.peak_bytes.items())
    text = (
        f"{figures.name}: {figures.blocks} blocks; uncached {ms(figures.native_ms)} ms, last block alone "
        f"{ms(figures.last_block_ms)}; full {ms(figures.full_ms)}, accepted {ms(figures.accepted_ms)} (anchors in "
        f"system memory {ms(figures.accepted_anchors_in_system_memory_ms)}), trusted {ms(figures.trusted_ms)}, "
        f"rejected {ms(figures.rejected_ms)}; "
        f"parts {parts}; cache {(figures.cache_bytes or 0) / 1e9:.3f} GB; peak memory {peaks}"
    )
    if "accepted_share" in found:
        text += f"; accepted call {found['accepted_share']:.1%} of an uncached one (goal {found['accepted_goal']:.1%})"
        text += f"; at 80 % acceptance {found['speedup_at_acceptance']['0.8']:.2f}x"
    return text


if __name__ == "__main__":
    main()
