"""The DiT network: against diffusers' implementation, and by properties."""

from __future__ import annotations

import pytest
import torch

import comfy_env

if comfy_env.comfyui_path() is None:
    pytest.skip("no ComfyUI", allow_module_level=True)

from dataclasses import asdict, replace

import dit_helpers
from dit_helpers import TINY
from speca.dit.checkpoint import from_diffusers
from speca.dit.model import DiT, position_embedding

pytestmark = pytest.mark.comfy


def inputs(config=TINY, batch: int = 3, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    side = size or config.input_size
    x = torch.randn(batch, config.in_channels, side, side, generator=generator)
    return x, torch.tensor([0, 417, 999])[:batch], torch.tensor([3, 0, config.num_classes])[:batch]


SHAPES = {
    "latent": TINY,
    "patch 4": replace(TINY, input_size=16, patch_size=4),
    "pixels, no variance": replace(TINY, in_channels=3, learn_sigma=False, input_size=32, patch_size=4),
    "two heads, one block": replace(TINY, num_heads=2, depth=1),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())
@torch.no_grad()
def test_equals_diffusers_with_the_same_weights(config) -> None:
    pytest.importorskip("diffusers")
    theirs = dit_helpers.diffusers_network(config)
    ours = DiT(**asdict(config)).eval()
    ours.load_state_dict(from_diffusers(theirs.state_dict()))
    x, t, y = inputs(config)
    expected = theirs(x, timestep=t, class_labels=y).sample
    actual = ours.predict(x, t, y)
    assert expected.std() > 0.1
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-5
    # and the authors' layout is the one `ours` has, so its own state dict must be taken as it is
    again = DiT(**asdict(config)).eval()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again.predict(x, t, y), actual)


@torch.no_grad()
def test_a_call_returns_the_noise_and_not_the_variance() -> None:
    network = dit_helpers.network()
    x, t, y = inputs()
    assert network.predict(x, t, y).shape == (3, 8, 8, 8)
    assert torch.equal(network(x, t, y=y), network.predict(x, t, y)[:, :4])


@torch.no_grad()
def test_labels_and_timesteps_matter_per_sample() -> None:
    network = dit_helpers.network()
    x, t, y = inputs()
    together = network(x, t, y=y)
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1], t[i : i + 1], y=y[i : i + 1]), together[i : i + 1])
    assert not torch.allclose(network(x, t, y=(y + 1) % 10), together, atol=1e-2)
    assert not torch.allclose(network(x, (t + 50) % 1000, y=y), together, atol=1e-2)


@torch.no_grad()
def test_no_label_is_the_null_class() -> None:
    network = dit_helpers.network()
    x, t, _ = inputs()
    assert torch.equal(network(x, t), network(x, t, y=torch.full((3,), TINY.num_classes)))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (6, 12), (7, 9)])
@torch.no_grad()
def test_any_resolution(height: int, width: int) -> None:
    network = dit_helpers.network()
    x = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(1))
    out = network(x, torch.tensor([10, 20]), y=torch.tensor([1, 2]))
    assert out.shape == x.shape
    assert out.isfinite().all()


def table(rows: int, columns: int, base: int | None) -> torch.Tensor:
    return position_embedding(64, rows, columns, base, torch.device("cpu"), torch.float64).reshape(rows, columns, 64)


def test_positions_of_another_size_stay_in_the_trained_range() -> None:
    trained, doubled = table(4, 4, 4), table(8, 8, 4)
    torch.testing.assert_close(doubled[::2, ::2], trained)
    assert not torch.allclose(doubled[1, 1], trained[0, 0])
    # without a known size, positions go on counting
    torch.testing.assert_close(table(8, 8, None)[:4, :4], trained)


def test_positions_of_a_rectangle_keep_rows_and_columns_apart() -> None:
    wide = table(2, 4, None)
    assert torch.equal(wide[0, :, 32:], wide[0, :1, 32:].expand(4, 32))  # the second half tells the row
    assert torch.equal(wide[:, 0, :32], wide[:1, 0, :32].expand(2, 32))  # the first half the column
    assert not torch.equal(wide[0, 0, :32], wide[0, 1, :32])


@torch.no_grad()
def test_a_block_can_be_replaced_as_in_comfyui_networks() -> None:
    network = dit_helpers.network()
    x, t, y = inputs()
    seen = []

    def pass_on(args, extra):
        seen.append((args["img"].shape, args["vec"].shape, args["transformer_options"]["block_index"]))
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 1): pass_on}}}
    assert torch.equal(network(x, t, y=y, transformer_options=options), network(x, t, y=y))
    assert seen == [((3, 16, 64), (3, 64), 1)]

    skipping = {
        "patches_replace": {"dit": {("double_block", i): lambda args, extra: {"img": args["img"]} for i in (1, 2)}}
    }
    shallow = dit_helpers.network(replace(TINY, depth=1))
    weights = network.state_dict()
    shallow.load_state_dict({key: weights[key] for key in shallow.state_dict()})
    assert torch.equal(network(x, t, y=y, transformer_options=skipping), shallow(x, t, y=y))


@torch.no_grad()
def test_the_diffusion_model_wrapper_is_called() -> None:
    import comfy.patcher_extension

    network = dit_helpers.network()
    x, t, y = inputs()
    doubled = lambda executor, *args, **kwargs: 2 * executor(*args, **kwargs)  # noqa: E731
    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    options: dict = {}
    comfy.patcher_extension.add_wrapper_with_key(kind, "test", doubled, options)
    assert torch.equal(network(x, t, y=y, transformer_options=options), 2 * network(x, t, y=y))


def test_trains_from_its_own_initialisation() -> None:
    torch.manual_seed(0)
    network = DiT(**asdict(replace(TINY, learn_sigma=False))).initialize_weights()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    x, t, y = inputs()
    # adaLN-Zero and the zero head: nothing comes out before training, and yet there is a gradient to begin with
    assert not network(x, t, y=y).any()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.mse_loss(network(x, t, y=y), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="cannot be split into 5 heads"):
        DiT(hidden_size=64, num_heads=5, device="meta")
