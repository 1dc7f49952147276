"""What architectures state, and what is made of it: block lists by hand, special cases, the table of models."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import comfy_env
import contract_models
import tiny_models

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("endless_patience")]


def block_list(*carried: Any, **options: Any) -> Any:
    from speca.adapters.base import BlockList

    return BlockList("blocks", carried=carried, **options)


class Block(nn.Module):
    """Doubles what it carries."""

    def forward(self, x: Any, context: Any = None, skip: Any = None) -> Any:
        return x * 2


class Variadic(nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] * 2, args[1] * 2


class Chain(nn.Module):
    """A network of three blocks and a head that adds 1."""

    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(3))

    def forward(self, x: torch.Tensor, timestep: Any = None, **_: Any) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x + 1


def bound(network: nn.Module, stage: Any, *args: Any, also_skipped: Any = (), **kwargs: Any) -> Any:
    """`BoundNetwork` over one call of `network`, with what `stage` states of its blocks."""
    from speca.adapters.base import Architecture, find_anatomy
    from speca.comfyui.compiled import Forwards
    from speca.comfyui.network import BoundNetwork

    architecture = Architecture("test", "Test", (), (stage,), also_skipped=also_skipped)
    latent = args[0][0] if isinstance(args[0], list) else args[0]
    anatomy = find_anatomy(architecture, network)
    return BoundNetwork(anatomy, Forwards.of(network), args, kwargs, latent.shape[0], True)


class TestBlockList:
    def test_a_speculated_call_doubles_once(self) -> None:
        ones = torch.ones(1, 4)
        network = bound(Chain(), block_list("x"), ones)
        exact = network.full(None, True)
        assert torch.equal(exact.output[0], ones * 9)
        assert torch.equal(exact.features[0], ones * 4)
        assert torch.equal(network.speculate((ones * 20,), None)[0], ones * 41)

    def test_by_keyword_and_by_position(self) -> None:
        stage, block, x, y = block_list("x"), Block(), torch.ones(1), torch.zeros(1)
        for args, kwargs in (([x], {}), ([], {"x": x})):
            assert stage.untouched(block)(*args, **kwargs) is x
            assert stage.needed(block, args, kwargs)[0] is x or torch.equal(stage.needed(block, args, kwargs)[0], x)
            new_args, new_kwargs = stage.with_needed(block, args, kwargs, (y,))
            assert torch.equal(new_args[0] if new_args else new_kwargs["x"], y)

    def test_by_number_where_the_forward_takes_anything(self) -> None:
        stage, block = block_list(0, 1), Variadic()
        one, two = torch.ones(1), torch.full((1,), 2.0)
        assert stage.untouched(block)(one, two, c=3) == (one, two)
        args, _ = stage.with_needed(block, (one, two), {}, (two, one))
        assert torch.equal(args[0], two)
        assert torch.equal(args[1], one)

    def test_what_else_is_needed_is_forecast_too_unless_it_is_none(self) -> None:
        stage, block = block_list("x", also_needed=("skip",)), Block()
        x, skip = torch.ones(1), torch.zeros(1)
        assert len(stage.needed(block, (x,), {"skip": skip})) == 2
        assert len(stage.needed(block, (x,), {"skip": None})) == 1
        assert len(stage.needed(block, (x,), {})) == 1
        _, kwargs = stage.with_needed(block, (x,), {"skip": skip}, (x, x))
        assert torch.equal(kwargs["skip"], x)

    def test_a_batch_that_is_not_the_first_dimension(self) -> None:
        stage, block = block_list("x", batch_dim=1), Block()
        x = torch.arange(6.0).view(3, 2)
        (needed,) = stage.needed(block, (x,), {})
        assert needed.shape == (2, 3)
        args, _ = stage.with_needed(block, (x,), {}, (needed,))
        assert torch.equal(args[0], x)
        assert args[0].is_contiguous()

    def test_returns_other_than_carried(self) -> None:
        x = torch.ones(1)
        assert block_list("x", returns=("x", "x")).untouched(Block())(x) == (x, x)
        assert block_list("x", returns_tuple=True).untouched(Block())(x) == (x,)

    def test_a_missing_parameter_is_named(self) -> None:
        from speca.adapters import NotThisArchitectureError

        with pytest.raises(NotThisArchitectureError, match=r"Block\.forward has no parameter 'hidden'"):
            bound(Chain(), block_list("hidden"), torch.ones(1, 1))

    def test_too_few_blocks_are_named(self) -> None:
        from speca.adapters import NotThisArchitectureError
        from speca.adapters.base import Architecture, BlockList, find_anatomy

        with pytest.raises(NotThisArchitectureError, match="Chain has fewer than two blocks in layers"):
            find_anatomy(Architecture("test", "Test", (), (BlockList("layers", ("x",)),)), Chain())


class PictureAndSound(nn.Module):
    """As LTX-2: a list in, a list out, blocks that carry both in one tuple."""

    class Block(nn.Module):
        def forward(self, x: tuple[torch.Tensor, torch.Tensor], scale: float = 2.0) -> Any:
            picture, sound = x
            return picture * scale, sound * scale + picture.mean()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, x: list[torch.Tensor], timestep: Any = None, **_: Any) -> list[torch.Tensor]:
        picture, sound = x
        for block in self.blocks:
            picture, sound = block((picture, sound))
        return [picture, sound]


def test_a_tuple_of_tensors_and_a_list_of_latents() -> None:
    latent = [tiny_models.gaussian(2, 4, seed=1), tiny_models.gaussian(2, 3, seed=2)]
    network = bound(PictureAndSound(), block_list("x"), latent)
    exact = network.full(None, True)
    assert [tuple(f.shape) for f in exact.features] == [(2, 4), (2, 3)]
    again = network.speculate(tuple(f.clone() for f in exact.features), None)
    assert all(torch.equal(a, b) for a, b in zip(again, exact.output, strict=True))
    restored = network.restore(again)
    assert isinstance(restored, list)
    row = network.full([1], True)
    assert torch.allclose(row.output[0], exact.output[0][1:])


class TestGuards:
    def test_a_helper_that_runs_after_the_last_block_keeps_the_run_native(self) -> None:
        """VACE with a block of its own behind every block: nothing may be skipped, and nothing is wrong."""
        tiny = tiny_models.build("wan21_vace", num_layers=3, vace_layers=3)
        plain, patched, record = sampled(tiny)
        assert torch.equal(plain, patched)
        assert record.totals.accepted == 0
        assert {row.reason for call in record.calls[2:] for row in call.rows} == {"no_anchor"}

    def test_a_patch_that_leaves_the_last_block_out_now_and_then(self) -> None:
        """Its name is in the stream's key on every call, so only the count of blocks gives it away."""
        tiny = tiny_models.build("flux")
        calls = iter(range(100))

        def skip_some(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            # Two computed, one to see what is embedded, and two drafts.
            return {"img": args["img"]} if next(calls) >= 5 else extra["original_block"](args)

        tiny.model_patcher.set_model_patch_replace(skip_some, "dit", "single_block", 2)
        from speca.comfyui.attach import attach, attachment_of
        from speca.config import SpeCaConfig

        patcher = attach(tiny.model_patcher, SpeCaConfig(threshold=1e9, order=1, warmup_steps=2, check_every=1))
        samples = tiny_models.ksample(patcher, *tiny[1:], steps=8)
        assert torch.isfinite(samples).all()
        record = attachment_of(patcher).run_of()
        assert [call.outcome for call in record.calls] == ["full", "full", "accepted", "accepted"]
        assert "4 of 5 blocks ran, where 5 ran before" in record.header.native
        assert "skip_some" in record.header.native

    def test_an_architecture_that_has_changed_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from speca.adapters import NotThisArchitectureError, recognise

        network = tiny_models.build("wan21").model_patcher.model.diffusion_model

        def forward(self: Any, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            return tokens

        monkeypatch.setattr(type(network.blocks[0]), "forward", forward)
        network.blocks = network.blocks[:3]
        said = r"SpeCa knows Wan, but in ComfyUI [\d.]+ WanAttentionBlock\.forward has no parameter 'x'"
        with pytest.raises(NotThisArchitectureError, match=said):
            recognise(network)

    def test_an_architecture_whose_list_of_blocks_is_called_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from speca import adapters

        (stage,) = adapters.WAN.stages
        renamed = replace(adapters.WAN, stages=(replace(stage, path="layers"),))
        known = tuple(renamed if known is adapters.WAN else known for known in adapters.ARCHITECTURES)
        monkeypatch.setattr(adapters, "ARCHITECTURES", known)
        plain, patched, record = sampled(tiny_models.build("wan21", num_layers=3))
        assert torch.equal(plain, patched)
        assert re.match(
            r"SpeCa knows Wan, but in ComfyUI [\d.]+ WanModel has fewer than two blocks in layers, and its structure "
            r"is not .*; it runs uncached$",
            record.header.native,
        )

    def test_blocks_that_return_something_beside(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As where a newer version hands on keys and values; a patch stands in for the network that unpacks them."""
        tiny = tiny_models.build("wan21")
        blocks = tiny.model_patcher.model.diffusion_model.blocks
        native = type(blocks[0]).forward
        monkeypatch.setattr(type(blocks[0]), "forward", as_before(native, lambda x: (x, x.mean())))
        for i in range(len(blocks)):
            tiny.model_patcher.set_model_patch_replace(
                lambda args, extra: {"img": extra["original_block"](args)["img"][0]}, "dit", "double_block", i
            )
        plain, patched, record = sampled(tiny)
        assert torch.equal(plain, patched)
        assert record.totals.accepted == 0
        said = r"SpeCa knows Wan, but in ComfyUI [\d.]+ WanAttentionBlock returns \((.*), a number\), not \1; "
        assert re.match(said, record.header.native)

    def test_blocks_that_return_the_same_in_another_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = tiny_models.build("flux")
        blocks = tiny.model_patcher.model.diffusion_model.double_blocks
        native = type(blocks[0]).forward
        monkeypatch.setattr(type(blocks[0]), "forward", as_before(native, lambda both: both[::-1]))
        for i in range(len(blocks)):

            def unpacked(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
                out = extra["original_block"](args)
                return {"img": out["txt"], "txt": out["img"]}

            tiny.model_patcher.set_model_patch_replace(unpacked, "dit", "double_block", i)
        plain, patched, record = sampled(tiny)
        assert torch.equal(plain, patched)
        assert record.totals.accepted == 0
        said = r"SpeCa knows FLUX.*, but in ComfyUI [\d.]+ DoubleStreamBlock returns \((.*), (.*)\), not \(\2, \1\);"
        assert re.match(said, record.header.native)


def as_before(native: Callable[..., Any], then: Callable[[Any], Any]) -> Callable[..., Any]:
    """A block's forward with the same parameters, and `then` of what it returns."""

    @functools.wraps(native)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return then(native(*args, **kwargs))

    return forward


def sampled(tiny: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """(the unpatched model's latent, SpeCa's with every forecast let through, the record)"""
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    patcher = attach(tiny.model_patcher, SpeCaConfig(**({"threshold": 1e9, "order": 1} | settings)))
    plain = tiny_models.ksample(*tiny, steps=6)
    patched = tiny_models.ksample(patcher, *tiny[1:], steps=6)
    return plain, patched, attachment_of(patcher).run_of()


@pytest.mark.parametrize("text_first", [True, False])
def test_hunyuan_video_with_either_order_of_its_tokens(text_first: bool) -> None:
    """ComfyUI joined picture and text in one order up to 0.8 and in the other later; here the network does both."""
    tiny = tiny_models.build("hunyuan_video")
    network = tiny.model_patcher.model.diffusion_model

    class Ordered(type(network)):  # type: ignore[misc]
        def forward_orig(
            self, img: Any, img_ids: Any, txt: Any, txt_ids: Any, mask: Any, t: Any, y: Any, *_: Any, **kw: Any
        ) -> Any:
            from comfy.ldm.flux.layers import timestep_embedding

            shape, options = img.shape, kw["transformer_options"]
            img, vec = self.img_in(img), self.time_in(timestep_embedding(t, 256)) + self.vector_in(y)
            txt = self.txt_in(txt, t, None)
            ids = (txt_ids, img_ids) if text_first else (img_ids, txt_ids)
            shared = {"vec": vec, "pe": self.pe_embedder(torch.cat(ids, 1)), "transformer_options": options}
            for block in self.double_blocks:
                block.flipped_img_txt = not text_first
                img, txt = block(img=img, txt=txt, **shared)
            x = torch.cat((txt, img) if text_first else (img, txt), 1)
            for block in self.single_blocks:
                x = block(x, **shared)
            img = x[:, txt.shape[1] :] if text_first else x[:, : img.shape[1]]
            out = self.final_layer(img, vec)
            frames, rows, columns = shape[2], shape[3] // 2, shape[4] // 2
            out = out.view(shape[0], frames, rows, columns, self.out_channels, 1, 2, 2)
            return out.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(shape)

    network.__class__ = Ordered
    plain, patched, record = sampled(tiny)
    assert record.header.architecture == "hunyuan_video"
    assert record.totals.accepted + record.totals.trusted == 5
    assert not torch.equal(plain, patched)
    plain, rejected, record = sampled(tiny, threshold=1e-9)
    assert record.totals.rejected == 5
    assert torch.equal(plain, rejected)
    from test_contract import exact_and_repeated

    for full, repeated, _ in exact_and_repeated(tiny, lambda feature: feature):
        assert torch.equal(full[0], repeated[0])


class TestArchitectures:
    def test_every_one_is_tested_or_says_why_not(self) -> None:
        """By the contract, or with its reason to stay native (`test_newer_models`); new ones on a newer ComfyUI."""
        import comfyui_version

        from speca.adapters import ARCHITECTURES, recognise

        names = [name for name in contract_models.NAMES if not contract_models.missing(name)]
        built = {recognise(_network(name)).architecture.name for name in names}
        here = _numbers(comfyui_version.__version__)
        for architecture in ARCHITECTURES:
            assert architecture.models
            if architecture.untested or architecture.native:
                assert architecture.name not in built
            elif architecture.name not in built:
                assert here < _numbers(architecture.since), architecture.name

    def test_newer_ones_are_among_the_contract_s_models(self) -> None:
        """By the name of the tiny model, since the pinned ComfyUI has no class to build it of."""
        from speca.adapters import ARCHITECTURES

        for architecture in ARCHITECTURES:
            if architecture.since and not architecture.untested and not architecture.native:
                assert any(name.startswith(architecture.name) for name in contract_models.newer_models.SPECS)

    def test_names_are_unique(self) -> None:
        from speca.adapters import ARCHITECTURES

        for names in (
            [a.name for a in ARCHITECTURES],
            [a.title for a in ARCHITECTURES],
            [network for a in ARCHITECTURES for network in a.networks],
        ):
            assert len(names) == len(set(names))

    def test_a_subclass_is_recognised(self) -> None:
        from speca.adapters import recognise

        network = tiny_models.build("flux").model_patcher.model.diffusion_model
        network.__class__ = type("AnotherPacksFlux", (type(network),), {})
        assert recognise(network).architecture.name == "flux"

    def test_the_readme_has_the_table(self) -> None:
        from speca.adapters.table import BEGIN, render, replaced

        assert "| FLUX |" in render()
        readme = comfy_env.ROOT / "README.md"
        text = readme.read_text() if readme.is_file() else ""
        if BEGIN not in text:
            pytest.skip("README.md has no markers for the table of models")
        assert replaced(text) == text, "render the table anew: speca.adapters.table.replaced"

    def test_the_table_goes_between_its_markers(self) -> None:
        from speca.adapters.table import BEGIN, END, render, replaced

        text = replaced(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        assert text == f"before\n{BEGIN}\n{render()}\n{END}\nafter\n"
        assert replaced(text) == text
        with pytest.raises(ValueError, match="models: begin"):
            replaced("no markers")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".") if number)


def _network(name: str) -> nn.Module:
    return contract_models.build(name).model_patcher.model.diffusion_model
