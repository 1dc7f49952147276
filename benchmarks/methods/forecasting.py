"""What `taylor` and `released` share: forecasting whole calls, without ever taking one back.

Written from the papers (arXiv 2503.06923, 2509.11628) and from what their released code does, on the same exchange of
forwards that SpeCa uses here, but sharing no decision or state with it.

What is cached (`Level`) and when a call is computed (`Rule`) are independent. Times are call numbers, as in the
released code; a batch is decided as a whole, so a rule that looks at errors should be run one sample at a time.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from measure.quality import Cost
from measure.sampling import Sampled
from speca.adapters import recognise
from speca.adapters.base import Anatomy, BlockList, exchanged_forward

from .base import Run

KEY = "benchmark_rival"

Features = dict[str, Tensor]
"""What a level caches of one call: (B, T, D) tensors by name."""


# --- The forecast -----------------------------------------------------------------------------------------------------


class TaylorFactors:
    """Feature and finite differences of one tensor at the newest full call, as `derivative_approximation` builds them.

    Each difference is taken over the last gap only. Differences start at call `first_full` - 1: those inside the
    warm-up, one call apart, are never used, which keeps the second difference from spanning unequal gaps there.
    """

    def __init__(self, order: int, first_full: int = 3) -> None:
        self._order = order
        self._first_full = first_full
        self._call = 0
        self.factors: list[Tensor] = []

    def record(self, call: int, feature: Tensor) -> None:
        factors = [feature]
        for i in range(min(self._order, len(self.factors))):
            if call <= self._first_full - 2:
                break
            factors.append((factors[i] - self.factors[i]) / (call - self._call))
        self._call = call
        self.factors = factors

    def forecast(self, call: int) -> Tensor:
        """sum_i factor_i (call - newest)^i / i!."""
        distance = call - self._call
        result = self.factors[0].clone()
        for i, factor in enumerate(self.factors[1:], start=1):
            result.add_(factor, alpha=distance**i / math.factorial(i))
        return result

    @property
    def nbytes(self) -> int:
        return sum(f.numel() * f.element_size() for f in self.factors)


# --- When a call is computed ------------------------------------------------------------------------------------------

Decision = Literal["full", "forecast", "checked"]
"""`checked`: a forecast during which the last block also runs for real, to measure the error."""


class Rule(Protocol):
    def decide(self, call: int, n_calls: int) -> Decision: ...

    def observe(self, error: float) -> None: ...


# --- What is cached ---------------------------------------------------------------------------------------------------


class Level(Protocol):
    """capture: while the network runs in full, fill `into`. replay: run the network on forecasts instead of blocks."""

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None: ...

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None: ...


def _blocks(anatomy: Anatomy) -> list[tuple[BlockList, nn.Module]]:
    return [*anatomy.skipped, (anatomy.verification_stage, anatomy.verification_block)]


def _carried(stage: BlockList, block: nn.Module, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
    return stage.needed(block, args, kwargs)[: len(stage.carried)]


def _as_tuple(returned: Any) -> tuple[Tensor, ...]:
    return tuple(returned) if isinstance(returned, (tuple, list)) else (returned,)


def _pack(stage: BlockList, tensors: tuple[Tensor, ...]) -> Any:
    return tensors[0] if len(tensors) == 1 and not stage.returns_tuple else tensors


class LastFeatures:
    """The output of the last block: all blocks are skipped, the head runs on the forecast."""

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        block = anatomy.verification_block

        def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            returned = native(*args, **kwargs)
            into.update({f"{i}": t.clone() for i, t in enumerate(_as_tuple(returned))})
            return returned

        stack.enter_context(exchanged_forward(block, functools.partial(run, block.forward)))

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        for stage, block in anatomy.skipped:
            stack.enter_context(exchanged_forward(block, stage.untouched(block)))
        stage, block = anatomy.verification_stage, anatomy.verification_block

        def answer(*args: Any, **kwargs: Any) -> Any:
            return _pack(stage, tuple(forecast(f"{i}") for i in range(len(stage.carried))))

        stack.enter_context(exchanged_forward(block, answer))


class BlockResiduals:
    """What every block adds to what it carries."""

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        for n, (stage, block) in enumerate(_blocks(anatomy)):

            def run(
                native: Callable[..., Any], stage: BlockList, block: nn.Module, n: int, *args: Any, **kwargs: Any
            ) -> Any:
                before = [t.clone() for t in _carried(stage, block, args, kwargs)]  # blocks work in place
                returned = native(*args, **kwargs)
                for i, (a, b) in enumerate(zip(_as_tuple(returned), before, strict=True)):
                    into[f"{n}.{i}"] = a - b
                return returned

            stack.enter_context(exchanged_forward(block, functools.partial(run, block.forward, stage, block, n)))

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        for n, (stage, block) in enumerate(_blocks(anatomy)):

            def answer(stage: BlockList, block: nn.Module, n: int, *args: Any, **kwargs: Any) -> Any:
                carried = _carried(stage, block, args, kwargs)
                return _pack(stage, tuple(t + forecast(f"{n}.{i}") for i, t in enumerate(carried)))

            stack.enter_context(exchanged_forward(block, functools.partial(answer, stage, block, n)))


@dataclass(frozen=True)
class _Modules:
    """The attention and MLP outputs of one kind of block, and how the block adds them up."""

    paths: tuple[str, ...]
    add_up: Callable[..., Any]


def _double_stream(block: Any, f: list[Tensor], img: Tensor, txt: Tensor, vec: Any, **kwargs: Any) -> Any:
    from comfy.ldm.flux.layers import apply_mod

    (img1, img2), (txt1, txt2) = (block.img_mod(vec), block.txt_mod(vec)) if block.modulation else vec
    img_dims, txt_dims = kwargs.get("modulation_dims_img"), kwargs.get("modulation_dims_txt")
    img = img + apply_mod(f[0], img1.gate, None, img_dims) + apply_mod(f[1], img2.gate, None, img_dims)
    txt = txt + apply_mod(f[2], txt1.gate, None, txt_dims) + apply_mod(f[3], txt2.gate, None, txt_dims)
    return img, txt


def _single_stream(block: Any, f: list[Tensor], x: Tensor, vec: Any, **kwargs: Any) -> Any:
    from comfy.ldm.flux.layers import apply_mod

    mod = block.modulation(vec)[0] if block.modulation else vec
    return x + apply_mod(f[0], mod.gate, None, kwargs.get("modulation_dims"))


def _dit(block: Any, f: list[Tensor], x: Tensor, c: Tensor, **kwargs: Any) -> Any:
    _, _, gate_msa, _, _, gate_mlp = block.adaLN_modulation(c).chunk(6, dim=1)
    return x + gate_msa.unsqueeze(1) * f[0] + gate_mlp.unsqueeze(1) * f[1]


MODULES: dict[str, _Modules] = {
    "DoubleStreamBlock": _Modules(("img_attn.proj", "img_mlp", "txt_attn.proj", "txt_mlp"), _double_stream),
    "SingleStreamBlock": _Modules(("linear2",), _single_stream),
    "DiTBlock": _Modules(("attn", "mlp"), _dit),
}


class ModuleOutputs:
    """Every attention and MLP output of every block, before its gate, as the released code caches them.

    In a forecast call the gates are computed anew from the call's own timestep. FLUX's single blocks have one output
    for attention and MLP together.
    """

    def capture(self, anatomy: Anatomy, into: Features, stack: ExitStack) -> None:
        for n, (_, block) in enumerate(_blocks(anatomy)):
            for i, path in enumerate(MODULES[type(block).__name__].paths):
                self._keep(block.get_submodule(path), f"{n}.{i}", into, stack)

    def replay(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], stack: ExitStack) -> None:
        for n, (_, block) in enumerate(_blocks(anatomy)):
            modules = MODULES[type(block).__name__]

            def answer(block: nn.Module, modules: _Modules, n: int, *args: Any, **kwargs: Any) -> Any:
                features = [forecast(f"{n}.{i}") for i in range(len(modules.paths))]
                return modules.add_up(block, features, *args, **kwargs)

            stack.enter_context(exchanged_forward(block, functools.partial(answer, block, modules, n)))

    def check(self, anatomy: Anatomy, forecast: Callable[[str], Tensor], errors: list[float], stack: ExitStack) -> None:
        """To be entered after `replay`: the last block also runs for real on its forecast input.

        Adds to `errors` the element-wise |F_hat - F| / (|F| + 1e-10), averaged over the block's last module: the
        released code's metric at its released place.
        """
        stage, block = anatomy.verification_stage, anatomy.verification_block
        paths = MODULES[type(block).__name__].paths
        name = f"{len(_blocks(anatomy)) - 1}.{len(paths) - 1}"
        replayed = block.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            exact: Features = {}
            own = tuple(t.clone() for t in stage.needed(block, args, kwargs))  # blocks work in place
            new_args, new_kwargs = stage.with_needed(block, args, kwargs, own)
            with ExitStack() as inner:
                self._keep(block.get_submodule(paths[-1]), name, exact, inner)
                type(block).forward(block, *new_args, **new_kwargs)
            errors.append(float(((forecast(name) - exact[name]).abs() / (exact[name].abs() + 1e-10)).mean()))
            return replayed(*args, **kwargs)

        stack.enter_context(exchanged_forward(block, run))

    @staticmethod
    def _keep(module: nn.Module, name: str, into: Features, stack: ExitStack) -> None:
        def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            into[name] = native(*args, **kwargs)
            return into[name]

        stack.enter_context(exchanged_forward(module, functools.partial(run, module.forward)))


LEVELS: dict[str, Level] = {"last": LastFeatures(), "blocks": BlockResiduals(), "modules": ModuleOutputs()}


# --- A run ------------------------------------------------------------------------------------------------------------


@dataclass
class RunLog:
    """What happened to each call of the last run, and the most bytes its cache held."""

    decisions: list[Decision] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    cache_bytes: int = 0


class _Stream:
    """One conditioning chunk layout's calls: ComfyUI may evaluate cond and uncond together or one after the other."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.calls = 0
        self.factors: dict[str, TaylorFactors] = {}


class _Run:
    def __init__(self, level: Level, make_rule: Callable[[], Rule], order: int, n_steps: int, log: RunLog) -> None:
        self._level = level
        self._make_rule = make_rule
        self._order = order
        self._n_steps = n_steps
        self._log = log
        self._streams: dict[Any, _Stream] = {}

    def forward(self, anatomy: Anatomy, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options", {})
        key = tuple(str(u) for u in options.get("uuids") or ()) or tuple(options.get("cond_or_uncond", ()))
        if key not in self._streams:
            self._streams[key] = _Stream(self._make_rule())
        stream = self._streams[key]
        call = stream.calls
        stream.calls += 1
        decision = stream.rule.decide(call, self._n_steps)
        self._log.decisions.append(decision)
        with ExitStack() as stack:
            if decision == "full":
                features: Features = {}
                self._level.capture(anatomy, features, stack)
                output = native(*args, **kwargs)
                for name, feature in features.items():
                    stream.factors.setdefault(name, self._new_factors(stream)).record(call, feature)
                held = sum(f.nbytes for s in self._streams.values() for f in s.factors.values())
                self._log.cache_bytes = max(self._log.cache_bytes, held)
                return output

            def forecast(name: str) -> Tensor:
                return stream.factors[name].forecast(call)

            self._level.replay(anatomy, forecast, stack)
            errors: list[float] = []
            if decision == "checked":
                assert isinstance(self._level, ModuleOutputs)
                self._level.check(anatomy, forecast, errors, stack)
            output = native(*args, **kwargs)
        for error in errors:
            stream.rule.observe(error)
            self._log.errors.append(error)
        return output

    def _new_factors(self, stream: _Stream) -> TaylorFactors:
        return TaylorFactors(self._order, getattr(stream.rule, "first_full", 3))


def attach(patcher: Any, level: str, make_rule: Callable[[], Rule], order: int) -> tuple[Any, RunLog]:
    """A clone of `patcher` that samples with a rival, and the log of its newest run."""
    import comfy.model_patcher
    from comfy.patcher_extension import WrappersMP

    log = RunLog()

    def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider, sigmas = executor.class_obj, args[3]
        log.decisions.clear()
        log.errors.clear()
        log.cache_bytes = 0
        unchanged = guider.model_options
        try:
            guider.model_options = comfy.model_patcher.create_model_options_clone(unchanged)
            options = guider.model_options.setdefault("transformer_options", {})
            options[KEY] = _Run(LEVELS[level], make_rule, order, len(sigmas) - 1, log)
            return executor(*args, **kwargs)
        finally:
            guider.model_options = unchanged

    def apply_model(executor: Any, *args: Any, **kwargs: Any) -> Any:
        options = args[5] if len(args) > 5 else kwargs.get("transformer_options", {})
        network = executor.class_obj.diffusion_model
        forward = functools.partial(options[KEY].forward, recognise(network), network.forward)
        with exchanged_forward(network, forward):
            return executor(*args, **kwargs)

    patched = patcher.clone()
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    return patched, log


def run_of(sampled: Sampled, log: RunLog, native: int) -> Run:
    """Shares of the run's network calls, in units of the sampler's (cond and uncond may come in two calls)."""
    counts = Counter(log.decisions)
    unit = native / max(len(log.decisions), 1)
    cost = Cost(native, counts["full"] * unit, counts["checked"] * unit, forecast=counts["forecast"] * unit)
    n = len(sampled.latents)
    return Run(sampled.latents, [cost] * n, sampled.seconds, log.cache_bytes // n)
