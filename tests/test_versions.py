"""What newer versions of ComfyUI require and rename, with stand-ins: the pinned tree alone must show a relapse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import comfy_env
import tiny_models

pytestmark = pytest.mark.comfy


@pytest.fixture
def versions(comfy: None) -> Any:
    return comfy_env.from_benchmarks("zoo.emoji_pack.versions")


def newer(parameters: type, **required: type) -> type:
    """A parameter class that requires further fields, as those of ComfyUI 0.4 and later do."""
    fields = [(f.name, f.type) for f in dataclasses.fields(parameters)]
    extra = [(name, kind) for name, kind in required.items() if name not in dict(fields)]
    return dataclasses.make_dataclass(parameters.__name__, [*fields, *extra])


@dataclasses.dataclass
class Parameters:
    depth: int
    qkv_bias: bool
    txt_ids_dims: list
    vec_in_dim: int
    ops_bias: bool = True
    axes: list = dataclasses.field(default_factory=list)


class TestFitted:
    def test_required_fields_are_switched_off_and_unknown_ones_left_out(
        self, versions: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(versions.PARAMETERS, "flux", f"{__name__}.Parameters")
        fitted = versions.fitted({"image_model": "flux", "depth": 3, "yak_mlp": True})
        assert fitted == {"image_model": "flux", "depth": 3, "qkv_bias": False, "txt_ids_dims": [], "vec_in_dim": None}

    def test_what_is_named_is_kept(self, versions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(versions.PARAMETERS, "flux2", f"{__name__}.Parameters")
        named = {"image_model": "flux2", "depth": 1, "qkv_bias": True, "txt_ids_dims": [3], "vec_in_dim": 8}
        assert versions.fitted(named | {"ops_bias": False}) == named | {"ops_bias": False}

    def test_a_network_without_a_parameter_class_is_left_alone(self, versions: Any) -> None:
        unet = {"image_model": "wan2.1", "anything": 1}
        assert versions.fitted(unet) == unet
        assert versions.fitted({"depth": 2}) == {"depth": 2}

    def test_every_parameter_class_is_where_it_is_said_to_be(self, versions: Any) -> None:
        for image_model in versions.PARAMETERS:
            assert versions.fitted({"image_model": image_model})["depth"] is None

    @pytest.mark.parametrize("name", ["flux", "hunyuan_video", "chroma", "flux2"])
    def test_a_tiny_model_is_built_of_a_newer_class(
        self, versions: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        """With all that has come to be required since 0.3.75, and one field more that nobody has heard of."""
        image_model = tiny_models.SPECS[name].config["image_model"]
        module, _, parameters = versions.PARAMETERS[image_model].rpartition(".")
        required = {"txt_ids_dims": list, "meanflow_sum": bool, "vec_in_dim": int, "never_heard_of": bool}
        of = __import__(module, fromlist=[parameters])
        monkeypatch.setattr(of, parameters, newer(getattr(of, parameters), **required))
        network = tiny_models.build(name).model_patcher.model.diffusion_model
        assert network.params.never_heard_of is False


class TestRenamed:
    OLD = ("double_blocks.0.img_attn.norm.query_norm.scale", "single_blocks.1.norm.key_norm.scale", "img_in.weight")
    NEW = ("double_blocks.0.img_attn.norm.query_norm.weight", "single_blocks.1.norm.key_norm.weight", "img_in.weight")

    @pytest.mark.parametrize(("saved", "wanted"), [(OLD, NEW), (NEW, OLD), (OLD, OLD), (NEW, NEW)])
    def test_both_ways(self, versions: Any, saved: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        weights = {name: i for i, name in enumerate(saved)}
        assert versions.renamed(weights, wanted) == {name: i for i, name in enumerate(wanted)}

    def test_what_fits_nothing_keeps_its_name(self, versions: Any) -> None:
        assert versions.renamed({"a_norm.scale": 1, "b.scale": 2}, ["b.weight"]) == {"a_norm.scale": 1, "b.scale": 2}

    def test_what_a_network_no_more_has_and_never_used_is_left_out(self, versions: Any) -> None:
        weights = {"norm_final.weight": 1, "layers.0.norm_final.weight": 2, "x.weight": 3}
        assert versions.renamed(weights, ["x.weight"]) == {"layers.0.norm_final.weight": 2, "x.weight": 3}
        assert versions.renamed(weights, list(weights)) == weights


@pytest.fixture
def zoo(versions: Any) -> Any:
    return comfy_env.from_benchmarks("zoo.build")


@pytest.mark.parametrize("name", ["flux-fluent", "hunyuan-arcade"])
def test_a_model_of_the_zoo_is_built_of_a_newer_class(zoo: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    spec = zoo.ZOO[name]
    module, _, parameters = zoo.versions.PARAMETERS[spec.unet["image_model"]].rpartition(".")
    of = __import__(module, fromlist=[parameters])
    newer_class = newer(getattr(of, parameters), txt_ids_dims=list, meanflow_sum=bool, never_heard_of=bool)
    monkeypatch.setattr(of, parameters, newer_class)
    network = zoo.model_of(spec, 5, device=torch.device("meta")).diffusion_model
    assert network.params.never_heard_of is False


def test_a_model_of_the_zoo_loads_without_a_weight_that_nothing_used(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lumina 2 is from 0.12 on."""
    name = "lumina-clipart"
    if not zoo.path_of(name).is_file():
        pytest.skip(f"{name} is not there")
    make = zoo.model_of

    def without(*args: Any, **kwargs: Any) -> Any:
        model = make(*args, **kwargs)
        vars(model.diffusion_model)["_modules"].pop("norm_final", None)
        return model

    monkeypatch.setattr(zoo, "model_of", without)
    patcher, _ = zoo.load(name)
    assert not hasattr(patcher.model.diffusion_model, "norm_final")


def test_newer_comfyui_is_told_that_it_trains(comfy: None) -> None:
    """Its kernels for rotary positions have no gradient, and it leaves them out then."""
    from comfy import model_management

    training = comfy_env.from_benchmarks("zoo.training.loop")
    with training.differentiable():
        assert model_management.in_training is True
    assert model_management.in_training is False


class Norm(nn.Module):
    """FLUX's norm of queries and keys with its weight called otherwise."""

    def __init__(self, name: str, dim: int, dtype: Any = None, device: Any = None, operations: Any = None) -> None:
        super().__init__()
        self.called = name
        self.register_parameter(name, nn.Parameter(torch.empty(dim, dtype=dtype, device=device)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * getattr(self, self.called)


@pytest.mark.parametrize("called", ["scale", "weight"])
@pytest.mark.parametrize("kind", ["flux", "hunyuan_video"])
def test_a_trained_model_loads_whatever_its_norms_are_called(
    emoji: Any, monkeypatch: pytest.MonkeyPatch, kind: str, called: str
) -> None:
    import comfy.ldm.flux.layers as layers

    if not emoji.models.FILES[kind].is_file():
        pytest.skip(f"{emoji.models.FILES[kind].name} is not there")

    def drawn(model: Any) -> torch.Tensor:
        motions = 0 if kind == "hunyuan_video" else None
        return emoji.models.sample(model, 3, motions, steps=2)

    as_it_is = drawn(emoji.models.load(emoji.models.FILES[kind]))
    norms = replace_norms(layers, monkeypatch, lambda *args, **kwargs: Norm(called, *args, **kwargs))
    model = emoji.models.load(emoji.models.FILES[kind])
    names = [name for name in model.model.diffusion_model.state_dict() if name.endswith(f"_norm.{called}")]
    assert len(names) == len(norms) > 0
    distance = torch.linalg.vector_norm(drawn(model) - as_it_is) / torch.linalg.vector_norm(as_it_is)
    assert math.isfinite(distance)
    assert distance < 1e-4


def replace_norms(layers: Any, monkeypatch: pytest.MonkeyPatch, make: Callable[..., nn.Module]) -> list[nn.Module]:
    """Have FLUX's `QKNorm` make its two norms by `make`, in whichever way this ComfyUI makes them; -> those made."""
    made: list[nn.Module] = []
    init = layers.QKNorm.__init__

    def with_ours(self: nn.Module, dim: int, dtype: Any = None, device: Any = None, operations: Any = None) -> None:
        init(self, dim, dtype=dtype, device=device, operations=operations)
        for name in ("query_norm", "key_norm"):
            setattr(self, name, make(dim, dtype=dtype, device=device))
            made.append(getattr(self, name))

    monkeypatch.setattr(layers.QKNorm, "__init__", with_ours)
    return made
