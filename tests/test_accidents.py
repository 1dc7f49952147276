"""Accidents: graphs that nobody wrote, with faults at any place, through ComfyUI's real executor.

Whatever is drawn: where nothing was accepted the picture is the uncached one to the bit; what is accepted is finite; an
interrupt or a lack of memory ends the prompt, as without SpeCa; and the model is afterwards what it was before. A
failing case prints its graph. A thousand are drawn with `--full`, the first hundred of them without.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import tiny_models

pytestmark = pytest.mark.comfy

ALL, IN_CI, EACH = 1000, 100, 10
"""Accidents; those that are drawn without --full; those in one test, so that workers share them."""

MODELS = tuple(
    name
    for name in ("flux", "sd3", "wan21", "lumina2", "qwen_image", "hunyuan_video", "pixart_alpha", "auraflow")
    if name in tiny_models.SPECS
)
SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "uni_pc", "euler_ancestral", "dpmpp_sde", "lcm", "dpm_2_ancestral")
SCHEDULERS = ("simple", "normal", "karras", "beta", "ddim_uniform", "exponential")

NEIGHBOURS = {
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 0.9},
    "RescaleCFG": {"multiplier": 0.7},
    "TinyNeighbour:tiles": {"kind": "tiles"},
    "TinyNeighbour:tiles that move": {"kind": "tiles that move"},
    "TinyNeighbour:function wrapper": {"kind": "function wrapper"},
    "TinyNeighbour:cache in function wrapper": {"kind": "cache in function wrapper"},
    "TinyNeighbour:cache in wrapper": {"kind": "cache in wrapper"},
    "SkipLayerGuidanceDiT": {
        **{"double_layers": "0", "single_layers": "", "scale": 1.0, "start_percent": 0.0, "end_percent": 0.6},
        "rescaling_scale": 0.0,
    },
    "EasyCache": {"reuse_threshold": 0.2, "start_percent": 0.1, "end_percent": 0.9, "verbose": False},
}

FAULTS = ("interrupt", "error", "memory", "nan", "dtype")


@dataclass(frozen=True)
class Fault:
    """Happens when a block of the network is called for the `at`-th time in a graph."""

    kind: str
    at: int


@dataclass(frozen=True)
class Accident:
    graph: dict[str, Any]
    fault: Fault | None

    @property
    def without_speca(self) -> dict[str, Any]:
        (speca,) = (key for key, node in self.graph.items() if node["class_type"] == "SpeCa")
        source = self.graph[speca]["inputs"]["model"]
        rest = {key: node for key, node in self.graph.items() if key != speca}
        return {
            key: node
            | {"inputs": {name: source if value == [speca, 0] else value for name, value in node["inputs"].items()}}
            for key, node in rest.items()
        }

    @property
    def has_cache(self) -> bool:
        kinds = {(node["class_type"], node["inputs"].get("kind", "")) for node in self.graph.values()}
        return any("ache" in cls or "ache" in kind for cls, kind in kinds)


SETTINGS = st.fixed_dictionaries(
    {"threshold": st.sampled_from([0.0, 0.001, 0.05, 0.3, 1.0])},
    optional={
        "order": st.integers(0, 3),
        "threshold_end_factor": st.sampled_from([0.25, 1.0, 4.0]),
        "accumulate_error": st.booleans(),
        "warmup_steps": st.integers(1, 4),
        "max_consecutive": st.integers(1, 6),
        "start_percent": st.sampled_from([0.0, 0.3]),
        "end_percent": st.sampled_from([0.6, 1.0]),
        "error_metric": st.sampled_from(["relative_l2", "relative_l1", "elementwise_l1", "cosine"]),
        "forecaster": st.sampled_from(["newton", "taylor", "reuse"]),
        "cache_device": st.sampled_from(["auto", "gpu", "cpu"]),
    },
)


@st.composite
def accidents(draw: st.DrawFn) -> Accident:
    graph: dict[str, Any] = {}

    def add(class_type: str, /, **inputs: Any) -> str:
        key = str(len(graph) + 1)
        graph[key] = {"class_type": class_type, "inputs": inputs}
        return key

    name = draw(st.sampled_from(MODELS))
    loader = add("TinyModelLoader", name=name, weights_seed=0, batch_size=draw(st.integers(1, 2)))
    model, latent, positive, negative = ([loader, i] for i in range(4))
    neighbours = draw(st.lists(st.sampled_from(sorted(NEIGHBOURS)), max_size=2, unique=True))
    place = draw(st.integers(0, len(neighbours)))
    for i, neighbour in enumerate([*neighbours[:place], "SpeCa", *neighbours[place:]]):
        inputs = draw(SETTINGS) if neighbour == "SpeCa" else NEIGHBOURS[neighbour]
        model = [add(neighbour.partition(":")[0], model=model, **inputs), 0]
        assert i < 4
    if draw(st.booleans()):
        cut = draw(st.sampled_from([0.2, 0.5]))
        early = [add("ConditioningSetTimestepRange", conditioning=positive, start=0.0, end=cut), 0]
        late = [add("ConditioningSetTimestepRange", conditioning=negative, start=cut, end=1.0), 0]
        positive = [add("ConditioningCombine", conditioning_1=early, conditioning_2=late), 0]
    for stage in range(draw(st.integers(1, 2))):
        latent = [
            add(
                "KSampler",
                **{"model": model, "positive": positive, "negative": negative, "latent_image": latent},
                seed=stage,
                steps=draw(st.integers(1, 7)),
                cfg=draw(st.sampled_from([1.0, 2.5])),
                sampler_name=draw(st.sampled_from(SAMPLERS)),
                scheduler=draw(st.sampled_from(SCHEDULERS)),
                denoise=1.0 if stage == 0 else draw(st.sampled_from([0.4, 0.7, 1.0])),
            ),
            0,
        ]
    add("TinyLatentProbe", samples=latent, name="accident")
    fault = draw(st.none() | st.builds(Fault, st.sampled_from(FAULTS), st.integers(1, 60)))
    return Accident(graph, fault)


@contextmanager
def faulty(model: Any, fault: Fault | None) -> Iterator[list[str]]:
    """-> what happened, once it did."""
    import comfy.model_management

    from speca.adapters import NotThisArchitectureError, recognise

    happened: list[str] = []
    calls = 0

    def before(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if fault is None or calls != fault.at or fault.kind not in ("interrupt", "error", "memory"):
            return
        happened.append(fault.kind)
        raise {
            "interrupt": comfy.model_management.InterruptProcessingException(),
            "error": ValueError("a block broke"),
            "memory": torch.OutOfMemoryError("full"),
        }[fault.kind]

    def after(module: Any, args: Any, output: Any) -> Any:
        if fault is None or calls != fault.at or fault.kind not in ("nan", "dtype") or happened:
            return None
        happened.append(fault.kind)
        change = (lambda t: t * float("nan")) if fault.kind == "nan" else (lambda t: t.double())
        return tuple(map(change, output)) if isinstance(output, tuple) else change(output)

    try:
        anatomy = recognise(model.model.diffusion_model)
    except NotThisArchitectureError:
        yield happened
        return
    blocks = [*(block for _, block in anatomy.skipped), anatomy.verification_block]
    handles = [h for b in blocks for h in (b.register_forward_pre_hook(before), b.register_forward_hook(after))]
    try:
        yield happened
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture
def stage(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(graphs, monkeypatch)


class Stage:
    """Runs graphs on models that stay the same from run to run, and keeps SpeCa's records."""

    def __init__(self, graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from speca.tally import Tally

        self.graphs = graphs
        self.build = functools.cache(tiny_models.build)
        self.records: list[Any] = []
        close = Tally.close

        def noted(tally: Any, status: Any) -> Any:
            self.records.append(close(tally, status))
            return self.records[-1]

        monkeypatch.setattr(tiny_models, "build", self.build)
        monkeypatch.setattr(Tally, "close", noted)

    def run(self, graph: dict[str, Any], fault: Fault | None = None) -> tuple[Any, torch.Tensor | None, list[str]]:
        """-> (result, samples, what happened)"""
        loader = graph["1"]["inputs"]
        model = self.build(loader["name"], loader["weights_seed"], batch=loader["batch_size"]).model_patcher
        self.graphs.forget()
        self.records.clear()
        with faulty(model, fault) as happened:
            result = self.graphs.run(graph)
        if not result.success:
            return result, None, happened
        (probe,) = (ui["latent"][0] for ui in result.outputs.values() if "latent" in ui)
        assert "forward" not in model.model.diffusion_model.__dict__
        return result, torch.load(probe, weights_only=True), happened


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(7e7), other.nan_to_num(7e7))


def check(stage: Stage, accident: Accident) -> None:
    bare = accident.without_speca
    reference, plain, _ = stage.run(bare)
    result, samples, happened = stage.run(accident.graph, accident.fault)
    records = list(stage.records)
    kind = happened[0] if happened else None
    messages = [name for name, _ in result.messages]
    if kind == "interrupt":
        assert "execution_interrupted" in messages
    elif kind == "memory":
        assert result.error["exception_type"].endswith("OutOfMemoryError")
    elif kind == "error" and not result.success:
        assert result.error["exception_type"] == "ValueError"
    elif kind is None:
        assert result.success == reference.success, result.error
    ended = {"interrupt": "interrupted", "memory": "failed"}.get(kind or "")
    if ended:
        assert records[-1].status == ended
    if plain is not None and samples is not None and kind in (None, "error"):
        # A call counts as accepted if all its samples are: of a batch, one sample may be and another not.
        rows = [row for record in records for call in record.calls for row in call.rows]
        if not accident.has_cache and all(row.outcome != "accepted" for row in rows):
            assert same(samples, plain)
        assert torch.isfinite(samples).all() or not torch.isfinite(plain).all()
    if plain is not None and happened:
        assert same(stage.run(bare)[1], plain)  # the model is what it was


@pytest.mark.parametrize(
    "first", [pytest.param(n, marks=[pytest.mark.full] if n >= IN_CI else []) for n in range(0, ALL, EACH)]
)
def test_accidents(stage: Stage, first: int) -> None:
    @hypothesis.seed(first)
    @hypothesis.settings(
        max_examples=EACH,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate),  # a graph is small
        print_blob=True,
    )
    @hypothesis.given(accidents())
    def drawn(accident: Accident) -> None:
        hypothesis.note(f"fault: {accident.fault}\n{json.dumps(accident.graph, indent=1)}")
        check(stage, accident)

    drawn()


def test_a_hundred_prompts_on_two_models(stage: Stage) -> None:
    """The last ones are what the first ones were, and the runs between leave nothing behind."""
    from speca.session import Session

    def prompt(name: str, seed: int) -> dict[str, Any]:
        how = {"seed": seed, "steps": 5, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        nodes = [
            ("TinyModelLoader", {"name": name, "weights_seed": 0, "batch_size": 1}),
            ("SpeCa", {"model": ["1", 0], "threshold": 0.3}),
            (
                "KSampler",
                {"model": ["2", 0], "positive": ["1", 2], "negative": ["1", 3], "latent_image": ["1", 1], **how},
            ),
            ("TinyLatentProbe", {"samples": ["3", 0], "name": "accident"}),
        ]
        return {str(i): {"class_type": kind, "inputs": inputs} for i, (kind, inputs) in enumerate(nodes, 1)}

    first: dict[tuple[str, int], torch.Tensor] = {}
    for turn in range(100):
        name, seed = MODELS[turn % 2], turn // 2 % 5
        result, samples, _ = stage.run(prompt(name, seed))
        assert result.success, result.error
        assert samples is not None
        assert torch.equal(first.setdefault((name, seed), samples), samples)
        (record,) = stage.records
        assert record.totals.calls == 5
    import gc

    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is Session]
