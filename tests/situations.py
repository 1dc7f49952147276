"""What people do with a model, one function each: the ways in which a sampler, a guider, a pack or a graph may call it.

A situation is a function of a `Scene`, which samples with one model and keeps what came out. It is run twice, with
SpeCa and without, on the same noise. `SITUATIONS` has them all by name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.context_windows
import comfy.controlnet
import comfy.hooks
import comfy.sample
import comfy.samplers
import node_helpers
import torch
from torch import Tensor

import comfy_env
import stand_ins
from speca.adapters import recognise
from speca.comfyui.attach import attach, attachment_of
from speca.config import SpeCaConfig

STEPS = 20

Situation = Callable[["Scene"], None]
SITUATIONS: dict[str, Situation] = {}


class NotOnThisModelError(Exception):
    """A situation that this network does not have. The message says why."""


def situation(function: Situation) -> Situation:
    SITUATIONS[function.__name__.replace("_", " ").strip()] = function
    return function


@functools.cache
def subject_of(name: str) -> Any:
    """`measure.subjects.Subject` of that name, loaded once."""
    comfy_env.from_benchmarks("zoo.build")
    return comfy_env.from_benchmarks("measure.subjects").load(name)


class Scene:
    """One model, sampled in any way; `config` None is without SpeCa. Keeps the pictures and the runs' records."""

    def __init__(self, subject: Any, config: SpeCaConfig | None = None, steps: int = STEPS) -> None:
        self.subject = subject
        self.steps = steps
        self.pictures: list[Tensor] = []
        self.records: list[Any] = []
        self._config = config
        self._attached: dict[int, tuple[Any, Any]] = {}

    # -- what there is to sample with

    @property
    def model(self) -> Any:
        return self.subject.patcher

    @property
    def network(self) -> Any:
        return self.model.model.diffusion_model

    @property
    def side(self) -> int:
        return self.subject.latent_shape[-1]

    @property
    def null(self) -> Any:
        return self.subject.conditioning([0])[1]

    def prompt(self, *labels: int, **values: Any) -> Any:
        """A row for each label; `values` are set on the conditioning."""
        positive, _ = self.subject.conditioning([label % self.subject.n_classes for label in labels])
        return node_helpers.conditioning_set_values(positive, values)

    def zeros(self, batch: int = 1) -> Tensor:
        return torch.zeros(batch, *self.subject.latent_shape)

    def sigmas(self, scheduler: str = "simple", steps: int | None = None, denoise: float = 1.0) -> Tensor:
        steps = steps or self.steps
        sampling = self.model.get_model_object("model_sampling")
        return comfy.samplers.calculate_sigmas(sampling, scheduler, int(steps / denoise))[-(steps + 1) :]

    @property
    def tile(self) -> int:
        """The side of one, five eighths of the latent's, in whole patches."""
        return self.side * 5 // 8 // 4 * 4

    def corners(self, *at: tuple[int, int]) -> list[tuple[int, int]]:
        """Places in eighths of what a tile leaves free, in whole patches."""
        free = self.side - self.tile
        return [(free * r // 8 // 4 * 4, free * c // 8 // 4 * 4) for r, c in at]

    # -- a run

    def with_speca(self, model: Any) -> Any:
        """One node a model, as in a graph."""
        if self._config is None:
            return model
        if id(model) not in self._attached:
            self._attached[id(model)] = model, attach(model, self._config)
        return self._attached[id(model)][1]

    def sample(
        self,
        *,
        model: Any = None,
        labels: Sequence[int] = (3,),
        positive: Any = None,
        negative: Any = None,
        guider: Callable[[Any], Any] | None = None,
        cfg: float = 1.0,
        sampler: str | Callable[..., Tensor] = "euler",
        sigmas: Tensor | None = None,
        latent: Tensor | None = None,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int = 5,
    ) -> Tensor:
        """`guider` makes one whose conditions are set. -> samples"""
        model = self.with_speca(self.model if model is None else model)
        if guider is None:
            made = comfy.samplers.CFGGuider(model)
            made.set_conds(positive or self.prompt(*labels), negative or self.null)
            made.set_cfg(cfg)
        else:
            made = guider(model)
        latent = self.zeros(len(labels)) if latent is None else latent
        noise = comfy.sample.prepare_noise(latent, seed) if noise is None else noise
        function = (
            comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else comfy.samplers.KSAMPLER(sampler)
        )
        sigmas = self.sigmas() if sigmas is None else sigmas
        with torch.inference_mode():
            samples = made.sample(noise, latent, function, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
        self.pictures.append(samples)
        if self._config is not None:
            self.records.append(attachment_of(model).run_of())
        return samples


# -- samplers


def _sampler(name: str, cfg: float = 1.0) -> None:
    SITUATIONS[name] = lambda scene: scene.sample(sampler=name, cfg=cfg)


for _name in ("euler", "heun", "dpm_2", "lms", "dpmpp_2m", "res_multistep", "uni_pc", "seeds_2"):
    _sampler(_name)
for _name in ("euler_ancestral", "dpm_2_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "lcm"):
    _sampler(_name)
_sampler("euler_cfg_pp", cfg=1.5)


# -- guidance


@situation
def cfg(scene: Scene) -> None:
    scene.sample(cfg=2.5)


def _guider(cls: Any, *scales: float, middle: int = 11) -> Situation:
    def run(scene: Scene) -> None:
        def make(model: Any) -> Any:
            guider = cls(model)
            guider.set_conds(scene.prompt(3), scene.prompt(middle), scene.null)
            guider.set_cfg(*scales)
            return guider

        scene.sample(guider=make)

    return run


def _dual_and_perp_neg() -> None:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    SITUATIONS["dual cfg"] = _guider(Guider_DualCFG, 2.0, 1.5)
    SITUATIONS["perp neg"] = _guider(Guider_PerpNeg, 2.5, 1.0)


_dual_and_perp_neg()


def _patched(node: str, name: str, model: Any, **inputs: Any) -> Any:
    import importlib

    return getattr(importlib.import_module(f"comfy_extras.{node}"), name).execute(model, **inputs).args[0]


@situation
def cfg_zero_star(scene: Scene) -> None:
    scene.sample(model=_patched("nodes_cfg", "CFGZeroStar", scene.model), cfg=2.5)


@situation
def skip_layer_guidance_in_a_window(scene: Scene) -> None:
    if not hasattr(scene.network, "double_blocks") and not hasattr(scene.network, "transformer_blocks"):
        raise NotOnThisModelError("takes no patches of blocks")
    inputs = {"double_layers": "1", "single_layers": "", "scale": 1.5, "start_percent": 0.1, "end_percent": 0.5}
    scene.sample(model=_patched("nodes_slg", "SkipLayerGuidanceDiT", scene.model, **inputs), cfg=2.5)


@contextmanager
def perturbing(network: Any) -> Iterator[None]:
    """Two blocks of any network heed the flag of `stand_ins`: they do nothing then."""
    stage, block = recognise(network).skipped[-1]
    some = {id(b): stage.untouched(b) for _, b in recognise(network).skipped[-2:]}
    kind, method = type(block), stage.method
    native = getattr(kind, method)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        perturbed = stand_ins.SWITCH.on or (kwargs.get("transformer_options") or {}).get("perturb")
        return some[id(self)](*args, **kwargs) if perturbed and id(self) in some else native(self, *args, **kwargs)

    functools.update_wrapper(forward, native)
    setattr(kind, method, forward)
    try:
        yield
    finally:
        setattr(kind, method, native)


@situation
def guidance_by_a_perturbed_network(scene: Scene) -> None:
    """Told by a flag that no option shows."""

    def make(model: Any) -> Any:
        guider = stand_ins.Perturbed(model, 1.5, stand_ins.in_an_object)
        guider.set_conds(scene.prompt(3), scene.null)
        return guider

    with perturbing(scene.network):
        scene.sample(guider=make)


class GuidanceOff(comfy.samplers.CFGGuider):
    """Guidance in the first half of the run only: the negative prompt's stream ends."""

    half: float

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
        scale = self.cfg
        self.cfg = scale if float(timestep[0]) > self.half else 1.0
        try:
            return super().predict_noise(x, timestep, model_options, seed)
        finally:
            self.cfg = scale


class GuidanceOnAndOff(GuidanceOff):
    """At every third step only."""

    turn = 0

    def predict_noise(self, x: Any, timestep: Any, model_options: Any = None, seed: Any = None) -> Any:
        self.turn += 1
        self.half = 0.0 if self.turn % 3 == 0 else float("inf")
        return super().predict_noise(x, timestep, model_options, seed)


def _guidance(cls: type) -> Situation:
    def run(scene: Scene) -> None:
        def make(model: Any) -> Any:
            guider = cls(model)
            guider.set_conds(scene.prompt(3), scene.null)
            guider.set_cfg(2.5)
            guider.half = float(scene.sigmas()[scene.steps // 2])
            return guider

        scene.sample(guider=make)

    return run


SITUATIONS["guidance ends at half"] = _guidance(GuidanceOff)
SITUATIONS["guidance at every third step"] = _guidance(GuidanceOnAndOff)


@situation
def cond_and_uncond_split_in_mid_run(scene: Scene) -> None:
    """Memory is short from half of the run on: ComfyUI runs the conditionings one by one."""
    base = scene.model.model
    calls = itertools.count()
    native = base.memory_required

    def required(*args: Any, **kwargs: Any) -> float:
        return 1e30 if next(calls) > scene.steps else native(*args, **kwargs)

    base.memory_required = required
    try:
        scene.sample(cfg=2.5)
    finally:
        del base.memory_required


@situation
def epsilon_scaling(scene: Scene) -> None:
    """What the guider returns is changed afterwards."""
    model = scene.model.clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["input"] - (args["input"] - args["denoised"]) / 1.02)
    scene.sample(model=model, cfg=2.5)


# -- conditions


@situation
def area_conditioning(scene: Scene) -> None:
    half = (scene.side, scene.side // 2, 0, 0)
    scene.sample(positive=[*scene.prompt(3), *scene.prompt(9, area=half, strength=0.7)], cfg=2.5)


@situation
def masked_conditioning(scene: Scene) -> None:
    mask = torch.zeros(1, scene.side, scene.side)
    mask[..., : scene.side // 2] = 1.0
    left, right = scene.prompt(3, mask=mask, mask_strength=1.0), scene.prompt(9, mask=1 - mask, mask_strength=1.0)
    scene.sample(positive=[*left, *right], cfg=2.5)


@situation
def averaged_prompts(scene: Scene) -> None:
    scene.sample(positive=[*scene.prompt(3, strength=0.6), *scene.prompt(9, strength=0.4)], cfg=2.5)


@situation
def prompt_that_changes(scene: Scene) -> None:
    first, then = {"end_percent": 0.3}, {"start_percent": 0.3}
    scene.sample(positive=[*scene.prompt(3, **first), *scene.prompt(9, **then)], cfg=2.5)


@situation
def prompts_that_alternate(scene: Scene) -> None:
    """Prompt editing of `[a|b]`: another one at each of ten parts of the run."""
    parts = [scene.prompt(3 if i % 2 else 9, start_percent=i / 10, end_percent=(i + 1) / 10)[0] for i in range(10)]
    scene.sample(positive=parts)


@situation
def prompts_with_more_tokens(scene: Scene) -> None:
    short = scene.prompt(3, end_percent=0.3)
    if not isinstance(short[0][0], Tensor) or short[0][0].ndim != 3:
        raise NotOnThisModelError("prompts have no tokens")
    features = short[0][0]
    long = [[torch.cat([features, scene.prompt(9)[0][0]], 1), short[0][1] | {"start_percent": 0.3, "end_percent": 1.0}]]
    scene.sample(positive=[*short, *long], cfg=2.5)


@situation
def reference_latent(scene: Scene) -> None:
    if type(scene.network).__name__ not in ("Flux", "QwenImageTransformer2DModel"):
        raise NotOnThisModelError("takes no reference")
    reference = torch.randn(scene.zeros().shape, generator=torch.Generator().manual_seed(1)) * 0.3
    scene.sample(positive=scene.prompt(3, reference_latents=[reference]), cfg=2.5)


class Control(comfy.controlnet.ControlBase):
    """What it adds to the network's image tokens is random, and the same in every call within its part of the run."""

    def __init__(self, scene: Scene, strength: float) -> None:
        super().__init__()
        self.how = scene, strength

    def get_control(self, x_noisy: Tensor, t: Any, cond: Any, batched_number: int, transformer_options: Any) -> Any:
        if self.timestep_range is not None and not self.timestep_range[1] <= t[0] <= self.timestep_range[0]:
            return None
        scene, strength = self.how
        tokens, width = _tokens(scene)
        noise = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(2)) * strength
        return {"input": [noise.expand(x_noisy.shape[0], -1, -1)] * 2, "output": []}

    def copy(self) -> Control:
        other = Control(*self.how)
        self.copy_to(other)
        return other

    def get_models(self) -> list[Any]:
        return []


def _tokens(scene: Scene) -> tuple[int, int]:
    network = scene.network
    width = getattr(network, "hidden_size", None) or network.inner_dim
    return (scene.side // network.patch_size) ** 2, width


@situation
def control_net_for_a_part(scene: Scene) -> None:
    if type(scene.network).__name__ not in ("Flux", "QwenImageTransformer2DModel"):
        raise NotOnThisModelError("takes no control")
    control = Control(scene, 0.3)
    control.set_cond_hint(scene.zeros(), 1.0, (0.2, 0.6))
    scene.sample(positive=scene.prompt(3, control=control, control_apply_to_uncond=True), cfg=2.5)


@situation
def weight_hook_that_changes(scene: Scene) -> None:
    """A LoRA in force over the first half of the run, then at a quarter."""
    name, weight = _matrix(scene)
    rows, columns = weight.shape
    generator = torch.Generator().manual_seed(5)
    lora = {
        f"{name}.lora_up.weight": torch.randn(rows, 4, generator=generator) * 0.1,
        f"{name}.lora_down.weight": torch.randn(4, columns, generator=generator) * 0.1,
    }
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=1.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.25, start_percent=0.5))
    hooks.set_keyframes_on_hooks(keyframes)
    scene.sample(positive=comfy.hooks.set_hooks_for_conditioning(scene.prompt(3), hooks), cfg=2.5)


def _matrix(scene: Scene) -> tuple[str, Tensor]:
    """The first matrix of a block in the middle, by its name in a LoRA."""
    _, block = recognise(scene.network).skipped[len(recognise(scene.network).skipped) // 2]
    wanted = {id(p) for p in block.parameters() if p.ndim == 2}
    for name, parameter in scene.model.model.named_parameters():
        if id(parameter) in wanted:
            return name.removesuffix(".weight"), parameter
    raise AssertionError("a block without a matrix")


# -- batches, loops, several runs


@situation
def batch_of_three(scene: Scene) -> None:
    scene.sample(labels=(3, 5, 7), cfg=2.5)


@situation
def batch_of_eight(scene: Scene) -> None:
    scene.sample(labels=range(8))


@situation
def batches_one_after_the_other(scene: Scene) -> None:
    for n in (1, 4, 2):
        scene.sample(labels=range(n), seed=n)


@situation
def a_loop_of_short_runs(scene: Scene) -> None:
    for turn in range(6):
        scene.sample(labels=(turn,), seed=turn, sigmas=scene.sigmas(steps=8))


@situation
def two_samplers_in_a_graph(scene: Scene) -> None:
    """The second one goes on from the first one's picture, with another prompt."""
    first = scene.sample()
    scene.sample(labels=(9,), latent=first, sigmas=scene.sigmas(steps=12, denoise=0.6), seed=6)


@situation
def upscale_and_second_pass(scene: Scene) -> None:
    if scene.subject.name.startswith("cosmos"):
        raise NotOnThisModelError("has learnt no positions beyond its size")
    first = scene.sample()
    large = torch.nn.functional.interpolate(first.flatten(2, -3) if first.ndim == 5 else first, scale_factor=1.5)
    large = large.reshape(*first.shape[:-2], *large.shape[-2:])
    scene.sample(latent=large, sigmas=scene.sigmas(steps=12, denoise=0.5), seed=6)


@situation
def detailer(scene: Scene) -> None:
    """Crops of a picture, each drawn anew in part."""
    picture = scene.sample()
    size = scene.side // 2
    for row, column in ((0, 0), (0, size), (size, 0)):
        crop = picture[..., row : row + size, column : column + size].clone()
        scene.sample(latent=crop, sigmas=scene.sigmas(steps=10, denoise=0.5), seed=row + column)


@situation
def two_models_back_to_back(scene: Scene) -> None:
    """Two stages of one run, each with weights of its own (Wan 2.2)."""
    name, weight = _matrix(scene)
    second = scene.model.clone()
    difference = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * weight.std() * 0.1
    assert second.add_patches({f"{name}.weight": ("diff", (difference,))})
    sigmas, half = scene.sigmas(), scene.steps // 2
    first = scene.sample(sigmas=sigmas[: half + 1])
    scene.sample(model=second, latent=first, sigmas=sigmas[half:], noise=scene.zeros())


# -- schedules


@situation
def split_sigmas(scene: Scene) -> None:
    sigmas, half = scene.sigmas(), scene.steps // 2
    first = scene.sample(sigmas=sigmas[: half + 1], cfg=2.5)
    scene.sample(latent=first, sigmas=sigmas[half:], noise=scene.zeros(), cfg=2.5)


@situation
def denoise_below_one(scene: Scene) -> None:
    scene.sample(latent=_drawn(scene), sigmas=scene.sigmas(denoise=0.6), labels=(9,), cfg=2.5)


@functools.cache
def _drawn_by(name: str) -> Tensor:
    return Scene(subject_of(name)).sample(labels=(3,), seed=9)


def _drawn(scene: Scene) -> Tensor:
    """A picture of another class, by the model itself."""
    return _drawn_by(scene.subject.name).clone()


@situation
def inpaint_mask(scene: Scene) -> None:
    scene.sample(latent=_drawn(scene), mask=_half(scene), labels=(9,), cfg=2.5)


def _half(scene: Scene) -> Tensor:
    mask = torch.zeros(1, 1, *scene.subject.latent_shape[1:])
    mask[..., : scene.side // 2] = 1.0
    return mask


@situation
def differential_diffusion(scene: Scene) -> None:
    """The mask grows from step to step."""
    model = scene.model.clone()
    top = float(scene.sigmas()[0])
    model.set_model_denoise_mask_function(
        lambda sigma, mask, extra_options: (mask >= float(sigma[0]) / top).to(mask.dtype)
    )
    ramp = torch.linspace(0, 1, scene.side).expand(1, 1, *scene.subject.latent_shape[1:])
    scene.sample(model=model, latent=_drawn(scene), mask=ramp.contiguous(), labels=(9,))


@situation
def flipped_sigmas(scene: Scene) -> None:
    """Inversion: from the picture up to the noise."""
    scene.sample(latent=_drawn(scene), noise=scene.zeros(), sigmas=_upwards(scene))


@situation
def inversion_and_back(scene: Scene) -> None:
    up = _upwards(scene)
    scene.sample(latent=_drawn(scene), noise=scene.zeros(), sigmas=torch.cat([up, up.flip(0)[1:]]))


def _upwards(scene: Scene) -> Tensor:
    """From nearly nothing, as euler cannot divide by it, to nearly all: ComfyUI itself divides by what is no noise."""
    down = scene.sigmas()[1:]
    down[-1] = float(down[-2]) / 8
    return down.flip(0)


@situation
def sigmas_that_go_up_again(scene: Scene) -> None:
    """A restart by the schedule alone: the picture is put back, without fresh noise."""
    down = scene.sigmas()
    turn = scene.steps * 2 // 3
    scene.sample(sigmas=torch.cat([down[: turn + 1], down[turn - 4 : turn].flip(0), down[turn - 3 :]]))


@situation
def repeated_sigmas(scene: Scene) -> None:
    scene.sample(sigmas=scene.sigmas(steps=scene.steps // 2).repeat_interleave(2)[1:-1])


@situation
def ends_early(scene: Scene) -> None:
    scene.sample(sigmas=scene.sigmas()[: scene.steps * 3 // 4])


@situation
def exponential_schedule(scene: Scene) -> None:
    scene.sample(sigmas=scene.sigmas("exponential"))


@situation
def restarts(scene: Scene) -> None:
    scene.sample(sampler=stand_ins.restarts(), cfg=2.5)


@situation
def noise_at_equal_sigma(scene: Scene) -> None:
    scene.sample(sampler=stand_ins.inner_loop(), cfg=2.5)


@situation
def noise_at_every_sigma(scene: Scene) -> None:
    scene.sample(sampler=stand_ins.inner_loop(1, 0))


@situation
def a_latent_that_is_moved(scene: Scene) -> None:
    scene.sample(sampler=stand_ins.moves_its_picture())


@situation
def noise_made_half_anew(scene: Scene) -> None:
    """Every third step half of the noise's variance is fresh, at the same sigma."""

    def sampler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, **kwargs: Any) -> Tensor:
        generator = torch.Generator().manual_seed(13)
        sampling = model.inner_model.inner_model.model_sampling
        for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            denoised = model(x, sigma * x.new_ones([x.shape[0]]), **extra_args)
            x = x + (x - denoised) / sigma * (after - sigma)
            if i % 3 == 2 and after > 0:
                blank = torch.zeros_like(x)
                noise = x - sampling.noise_scaling(after, blank, denoised)
                fresh = sampling.noise_scaling(after, torch.randn(x.shape, generator=generator), blank)
                x = x + (0.5**0.5 - 1) * noise + 0.5**0.5 * fresh
        return x

    scene.sample(sampler=sampler)


# -- tiles and windows


def _tiles(scene: Scene, places: Callable[[int], list[tuple[int, int]]], at_once: int = 1) -> None:
    scene.sample(model=stand_ins.tiled(scene.model, places, size=scene.tile, at_once=at_once))


FOUR = [(0, 0), (0, 8), (8, 0), (8, 8)]


@situation
def tiles(scene: Scene) -> None:
    _tiles(scene, lambda call: scene.corners(*FOUR))


@situation
def tiles_three_at_once(scene: Scene) -> None:
    _tiles(scene, lambda call: scene.corners(*FOUR), at_once=3)


@situation
def tiles_that_move(scene: Scene) -> None:
    """SpotDiffusion: all of them, at each step."""

    def places(call: int) -> list[tuple[int, int]]:
        return [(0, 0), *scene.corners(*FOUR[1:], (5 * call % 9, 3 * call % 9))]

    _tiles(scene, places)


@situation
def tiles_in_another_order(scene: Scene) -> None:
    _tiles(scene, lambda call: scene.corners(*(FOUR[(i + call) % 4] for i in range(4))))


def _windows(scene: Scene, schedule: str) -> None:
    dim = len(scene.subject.latent_shape) - 1  # the picture's height stands in for frames
    handler = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule(schedule),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"),
        context_length=scene.side * 5 // 8 // 4 * 4,
        context_overlap=scene.side // 8,
        dim=dim,
    )
    model = scene.model.clone()
    model.model_options["context_handler"] = handler
    comfy.context_windows.create_prepare_sampling_wrapper(model)
    scene.sample(model=model, cfg=2.5)


@situation
def context_windows(scene: Scene) -> None:
    _windows(scene, "standard_static")


@situation
def context_windows_that_move(scene: Scene) -> None:
    _windows(scene, "standard_uniform")
