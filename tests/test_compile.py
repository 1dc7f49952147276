"""Networks compiled as a whole and block by block, through core's own wrapper and in the ways of other packs, with
dynamo for real and a backend that does nothing but count its graphs."""

import pytest
import torch

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("endless_patience")]


@pytest.fixture
def tiny():
    import tiny_models

    torch._dynamo.reset()
    yield tiny_models.build("flux")
    torch._dynamo.reset()


def compiled(model):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    set_torch_compile_wrapper(model, backend="eager")
    return model


def run(model, tiny, steps=10):
    import tiny_models
    from speca.comfyui.attach import attachment_of

    latent = tiny_models.ksample(model, *tiny[1:], steps=steps)
    attachment = attachment_of(model)
    return latent, attachment and attachment.run_of(latent)


def with_speca(model, **settings):
    from speca.comfyui.attach import attach
    from speca.config import SpeCaConfig

    return attach(model, SpeCaConfig(**settings))


@pytest.mark.parametrize("speca_first", [True, False])
def test_a_compiled_model_speculates_in_either_order_of_the_nodes(tiny, speca_first):
    settings = {"threshold": 9.0, "order": 1, "accumulate_error": False}
    if speca_first:
        model = compiled(with_speca(tiny.model_patcher, **settings))
    else:
        model = with_speca(compiled(tiny.model_patcher), **settings)
    latent, record = run(model, tiny)
    assert record.header.native is None
    assert record.totals.accepted > 0
    uncompiled, uncompiled_record = run(with_speca(tiny.model_patcher, **settings), tiny)
    assert [c.outcome for c in record.calls] == [c.outcome for c in uncompiled_record.calls]
    torch.testing.assert_close(latent, uncompiled, rtol=1e-4, atol=1e-4)


def test_rejecting_everything_gives_the_compiled_model_s_picture(tiny):
    plain, _ = run(compiled(tiny.model_patcher), tiny)
    latent, record = run(with_speca(compiled(tiny.model_patcher), threshold=1e-9), tiny)
    assert record.totals.rejected == 9
    torch.testing.assert_close(latent, plain, rtol=1e-5, atol=1e-5)


def test_the_compiled_model_is_right_when_speca_is_bypassed_again(tiny):
    model = compiled(tiny.model_patcher)
    patched = with_speca(model, threshold=9.0)
    run(patched, tiny)
    again, _ = run(model, tiny)
    torch._dynamo.reset()
    plain, _ = run(tiny.model_patcher, tiny)
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4)


class Graphs:
    """A backend that compiles nothing and counts what it is given."""

    def __init__(self):
        self.made = 0

    def __call__(self, graph, inputs):
        self.made += 1
        return graph.forward


def blocks_of(model):
    network = model.model.diffusion_model
    for path in ("double_blocks", "single_blocks"):
        for i, block in enumerate(network.get_submodule(path)):
            yield f"diffusion_model.{path}.{i}", block


def by_core_wrapper(model, graphs):
    """KJNodes' nodes name each block to core's wrapper, which puts the compiled ones in for each call."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    set_torch_compile_wrapper(model, backend=graphs, keys=[key for key, _ in blocks_of(model)])


def by_object_patches(model, graphs):
    """Its older ones put them in for as long as the model is loaded."""
    for key, block in blocks_of(model):
        model.add_object_patch(key, torch.compile(block, backend=graphs))


def in_place(model, graphs):
    """`nn.Module.compile` leaves the block where it is."""
    for _, block in blocks_of(model):
        block.compile(backend=graphs)


SETTINGS = {"threshold": 9.0, "order": 1, "accumulate_error": False}


@pytest.mark.parametrize("way", [by_core_wrapper, by_object_patches, in_place])
def test_blocks_compiled_one_by_one_speculate_and_no_step_compiles_anew(tiny, way):
    uncompiled, uncompiled_record = run(with_speca(tiny.model_patcher, **SETTINGS), tiny)
    model, graphs = tiny.model_patcher.clone(), Graphs()
    way(model, graphs)
    plain, _ = run(model, tiny)
    natively = graphs.made
    assert natively > 0

    latent, record = run(with_speca(model, **SETTINGS), tiny)
    assert record.header.native is None
    assert record.header.architecture == "flux"
    assert record.totals.accepted > 0
    assert [c.outcome for c in record.calls] == [c.outcome for c in uncompiled_record.calls]
    torch.testing.assert_close(latent, uncompiled, rtol=1e-4, atol=1e-4)
    made = graphs.made
    # Newer blocks look into `transformer_options`, in which SpeCa's run lies: at most once more for each kind of block.
    assert made <= 2 * natively

    rejected, record = run(with_speca(model, threshold=1e-9), tiny)
    assert record.totals.rejected == 9
    assert torch.equal(rejected, plain)
    assert torch.equal(run(model, tiny)[0], plain)  # nothing of SpeCa is left on the blocks
    run(with_speca(model, **SETTINGS), tiny, steps=16)
    assert graphs.made == made


def test_blocks_compiled_after_the_speca_node(tiny):
    model, graphs = with_speca(tiny.model_patcher, **SETTINGS), Graphs()
    by_core_wrapper(model, graphs)
    _, record = run(model, tiny)
    assert record.header.native is None
    assert record.totals.accepted > 0
    assert graphs.made > 0


def test_what_is_compiled_in_place_is_exchanged_run_and_put_back():
    from speca.adapters.base import exchanged_forward, native_of

    class Block(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(2 * x)

    torch._dynamo.reset()
    graphs, module, x = Graphs(), Block(), torch.ones(2, 3)
    module.compile(backend=graphs)
    exact = module(x)
    native = native_of(module)
    with exchanged_forward(module, lambda x: native(x) + 1):
        assert torch.equal(module(x), exact + 1)
    assert torch.equal(module(x), exact)
    assert "forward" not in vars(module)
    assert graphs.made == 1
