"""A network compiled as a whole, through core's own wrapper, with dynamo for real and the backend that does nothing."""

import pytest
import torch

pytestmark = pytest.mark.comfy


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


def run(model, tiny):
    import tiny_models
    from speca.comfyui.attach import attachment_of

    latent = tiny_models.ksample(model, *tiny[1:], steps=10)
    attachment = attachment_of(model)
    return latent, attachment and attachment.run_of(latent)


def with_speca(model, **settings):
    from speca.comfyui.attach import attach
    from speca.config import SpeCaConfig

    return attach(model, SpeCaConfig(**settings))


@pytest.mark.parametrize("speca_first", [True, False])
def test_a_compiled_model_speculates_in_either_order_of_the_nodes(tiny, speca_first):
    settings = {"threshold": 0.9, "order": 1, "accumulate_error": False}
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
    patched = with_speca(model, threshold=0.9)
    run(patched, tiny)
    again, _ = run(model, tiny)
    torch._dynamo.reset()
    plain, _ = run(tiny.model_patcher, tiny)
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4)
