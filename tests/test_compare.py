"""SpeCa Compare through ComfyUI's real executor: what it gives, what it keeps, and what it leaves behind."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import math
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_models
import truth
from speca.clock import RunClock
from speca.comparison import NO_SSIM, Figures, in_lines, mean_square, psnr, relative_error, ssim
from speca.comparison import report as report_of
from speca.events import CallRecord, Row
from speca.witness import TrueError, Witness

pytestmark = pytest.mark.comfy

STEPS = 12
EMBEDDED = 1  # a pass without the blocks, which tells what is embedded
EMOJI, VIDEO = "SpeCaDemoLoadFlux", "SpeCaDemoLoadHunyuanVideo"


def graph(model: str = "tiny", *, seed: int = 1, **settings: Any) -> dict[str, Any]:
    """Ids: 1 model, 2 SpeCa, 3 noise, 4 guider, 5 sampler, 6 sigmas, 7 compare, 8 vae, 9 and 10 probes of the results,
    11 preview; 12 and 13 prompt and latent of a trained model, which alone has a vae and a preview."""
    nodes = {
        "1": ("TinyModelLoader", {"name": "flux", "weights_seed": 0, "batch_size": 1}),
        "2": ("SpeCa", {"model": ["1", 0], "threshold": 1.0 if model == "tiny" else 0.08, **settings}),
        "3": ("RandomNoise", {"noise_seed": seed}),
        "4": ("CFGGuider", {"model": ["2", 0], "positive": ["1", 2], "negative": ["1", 3], "cfg": 1.0}),
        "5": ("KSamplerSelect", {"sampler_name": "euler"}),
        "6": ("BasicScheduler", {"model": ["1", 0], "scheduler": "simple", "steps": STEPS, "denoise": 1.0}),
        "7": ("SpeCaCompare", {"noise": ["3", 0], "guider": ["4", 0], "sampler": ["5", 0], "sigmas": ["6", 0]}),
        "9": ("TinyLatentProbe", {"samples": ["7", 0], "name": "uncached"}),
        "10": ("TinyLatentProbe", {"samples": ["7", 1], "name": "speca"}),
    }
    nodes["7"][1]["latent_image"] = ["1", 1]
    if model != "tiny":
        nodes["1"] = (model, {})
        nodes["8"] = ("VAELoader", {"vae_name": "pixel_space"})
        nodes["11"] = ("PreviewImage", {"images": ["7", 2]})
        nodes["12"] = ("SpeCaDemoPrompt", {"model": ["1", 0], "emoji": "fox", "motion": "any"})
        nodes["13"] = ("SpeCaDemoLatent", {"model": ["1", 0], "batch_size": 1})
        nodes["4"][1].update(positive=["12", 0], negative=["12", 1])
        nodes["7"][1].update(latent_image=["13", 0], vae=["8", 0])
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def edited(graph: dict[str, Any], node: str, **inputs: Any) -> dict[str, Any]:
    graph[node]["inputs"].update(inputs)
    return graph


def report(result: Any) -> dict[str, Any]:
    assert result.success, result.error
    return json.loads(result.outputs["7"]["speca_compare"][0])


def latents(result: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Without SpeCa, with it."""
    uncached, speca = (torch.load(result.outputs[key]["latent"][0], weights_only=True) for key in ("9", "10"))
    return uncached, speca


def picture(result: Any) -> Image.Image:
    import folder_paths

    (image,) = result.outputs["7"]["images"]
    return Image.open(Path(folder_paths.get_directory_by_type(image["type"]), image["subfolder"], image["filename"]))


@pytest.fixture(autouse=True)
def comparison(comfy: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The node's own, with nothing kept from another test."""
    from speca_pack.nodes import compare

    from speca.comfyui.compare import Comparison

    monkeypatch.setattr(compare, "comparison", Comparison())
    return compare.comparison


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    return counted(monkeypatch)


def counted(monkeypatch: pytest.MonkeyPatch, interrupt_at: int = 0) -> list[None]:
    """Grows with each call of a FLUX network, speculated ones included; a rejected call is two."""
    import comfy.ldm.flux.model as flux
    import comfy.model_management

    native, made = flux.Flux.forward, []

    @functools.wraps(native)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(None)
        if len(made) == interrupt_at:
            comfy.model_management.interrupt_current_processing()
        return native(self, *args, **kwargs)

    monkeypatch.setattr(flux.Flux, "forward", forward)
    return made


def by_sampler_custom(graph: dict[str, Any]) -> dict[str, Any]:
    """The same by two of ComfyUI's own nodes, the first on the model before SpeCa."""
    given = graph.pop("7")["inputs"]
    graph["14"] = {"class_type": "CFGGuider", "inputs": {**graph["4"]["inputs"], "model": ["1", 0]}}
    for key, guider, probe in (("15", "14", "9"), ("16", "4", "10")):
        inputs = {**given, "guider": [guider, 0]}
        graph[key] = {"class_type": "SamplerCustomAdvanced", "inputs": inputs}
        graph[probe]["inputs"]["samples"] = [key, 0]
    return {key: node for key, node in graph.items() if key not in ("8", "11")}


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "euler_ancestral", "heun"])
def test_both_results_are_those_of_comfyuis_own_sampler(graphs: Any, sampler: str) -> None:
    def asked() -> dict[str, Any]:
        return edited(graph(threshold=1.0, threshold_end_factor=100.0), "5", sampler_name=sampler)

    uncached, speca = latents(graphs.run(asked()))
    as_ever = latents(graphs.run(by_sampler_custom(asked())))
    assert torch.equal(uncached, as_ever[0])
    assert torch.equal(speca, as_ever[1])
    assert not torch.equal(uncached, speca)


def test_threshold_zero_is_the_same_to_the_last_digit_and_said_so(graphs: Any) -> None:
    result = graphs.run(graph(EMOJI, threshold=0.0))
    told = report(result)
    uncached, speca = latents(result)
    assert torch.equal(uncached, speca)
    assert (told["psnr"], told["latent_error"], told["ssim"]) == ("infinite", 0.0, 1.0)
    assert "The same to the last digit, PSNR infinite" in told["summary"]
    assert "Nothing was skipped: 12x threshold 0" in told["summary"]
    assert told["run"]["full"] == STEPS


def test_a_comparison_on_a_trained_model(graphs: Any) -> None:
    result = graphs.run(graph(EMOJI))
    told = report(result)
    uncached, speca = latents(result)
    assert told["run"]["accepted"] > 0
    assert told["speedup"] == pytest.approx(told["seconds"]["uncached"] / told["seconds"]["speca"], rel=1e-3)
    assert told["uncached_run"] == "new"
    assert told["psnr"] == pytest.approx(psnr_of(uncached, speca), abs=0.05)
    assert told["psnr"] > 25
    assert 0.8 < told["ssim"] < 1
    assert told["ssim_by"].startswith("scikit-image")
    assert told["latent_error"] == pytest.approx(((uncached - speca).norm() / uncached.norm()).item(), rel=1e-3)
    assert told["true_errors"] is None
    assert [call["outcome"] for call in told["calls"]].count("accepted") == told["run"]["accepted"]
    assert len(result.outputs["11"]["images"]) == 1
    assert picture(result).size == (3 * 256 + 4 * 8, 256 + 28 + 8)
    # The panel on the SpeCa node finds this run in the history.
    assert json.loads(result.outputs["7"]["speca"][0])["run_id"] == told["run"]["run_id"]


def psnr_of(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of latents that are the picture, in [-1, 1]."""
    a, b = ((x.clamp(-1, 1) + 1) / 2 for x in (a, b))
    return -10 * math.log10((a - b).square().mean().item())


def decode_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """As VAEs of videos do; newer versions' pixel_space gives the first frame alone."""
    import comfy.sd

    def decode(self: Any, samples: torch.Tensor) -> torch.Tensor:
        return ((samples + 1) / 2).clamp(0, 1).movedim(1, -1)

    monkeypatch.setattr(comfy.sd.VAE, "decode", decode)


def test_a_video_shows_its_middle_and_its_worst_frame(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_clips(monkeypatch)
    result = graphs.run(edited(graph(VIDEO), "6", steps=8))
    told = report(result)
    assert told["run"]["accepted"] > 0
    uncached, speca = latents(result)
    assert uncached.shape[2] == 5
    shown = picture(result)
    assert shown.size == (3 * 256 + 4 * 8, 2 * (256 + 28 + 8))
    worst = int((uncached.clamp(-1, 1) - speca.clamp(-1, 1)).square().mean(dim=(0, 1, 3, 4)).argmax())
    for row, frame in enumerate((2, worst)):
        top = row * (256 + 28 + 8) + 28
        panel = np.asarray(shown.crop((8, top, 8 + 256, top + 256)))[::8, ::8]
        expected = ((uncached[0, :, frame].clamp(-1, 1) + 1) / 2 * 255).round().movedim(0, -1).numpy()
        assert np.abs(panel.astype(float) - expected).max() <= 1


class TestWhatIsKept:
    @pytest.mark.parametrize(
        "settings", [{"threshold": 0.2}, {"order": 1, "threshold": 0.4}, {"forecaster": "reuse"}], ids=str
    )
    def test_another_setting_of_speca_makes_the_fast_run_alone(
        self, graphs: Any, calls: list[None], settings: dict[str, Any]
    ) -> None:
        first = graphs.run(graph())
        uncached = latents(first)[0]
        assert len(calls) == 1 + 2 * STEPS + EMBEDDED + report(first)["run"]["rejected"]
        calls.clear()
        second = graphs.run(graph(**settings))
        told = report(second)
        assert len(calls) == STEPS + EMBEDDED + told["run"]["rejected"]
        assert told["uncached_run"] == "kept from before"
        assert "(an earlier run)" in told["summary"]
        assert told["seconds"]["uncached"] == report(first)["seconds"]["uncached"]
        kept, speca = latents(second)
        assert torch.equal(kept, uncached)
        graphs.forget()
        assert torch.equal(latents(graphs.run(graph(**settings)))[1], speca)

    @pytest.mark.parametrize(
        ("node", "inputs"),
        [
            ("3", {"noise_seed": 2}),
            ("4", {"cfg": 2.0}),
            ("4", {"positive": ["1", 3]}),
            ("5", {"sampler_name": "heun"}),
            ("6", {"steps": STEPS + 1}),
            ("6", {"scheduler": "karras"}),
            ("1", {"weights_seed": 1}),
            ("1", {"batch_size": 2}),
        ],
        ids=str,
    )
    def test_another_run_is_made(self, graphs: Any, node: str, inputs: dict[str, Any]) -> None:
        first = latents(graphs.run(graph()))
        second = graphs.run(edited(graph(), node, **inputs))
        assert report(second)["uncached_run"] == "new"
        assert not torch.equal(first[0], latents(second)[0])

    def test_a_patched_model_is_another(self, graphs: Any) -> None:
        def shifted(shift: float) -> dict[str, Any]:
            changed = edited(graph(), "2", model=["14", 0])
            given = {"model": ["1", 0], "max_shift": shift, "base_shift": 0.5, "width": 64, "height": 64}
            return changed | {"14": {"class_type": "ModelSamplingFlux", "inputs": given}}

        assert report(graphs.run(shifted(1.0)))["uncached_run"] == "new"
        assert report(graphs.run(edited(shifted(1.0), "2", threshold=0.2)))["uncached_run"] == "kept from before"
        assert report(graphs.run(shifted(1.1)))["uncached_run"] == "new"

    def test_changed_weights_are_another_model(self) -> None:
        tiny = tiny_models.build("flux")
        key = "diffusion_model.single_blocks.0.linear1.weight"
        weight = tiny.model_patcher.model.state_dict()[key]
        changed = tiny.model_patcher.clone()
        changed.add_patches({key: (torch.ones_like(weight),)})
        same, clone, other = (inputs_of_run(tiny, model) for model in (None, tiny.model_patcher.clone(), changed))
        assert same == clone
        assert same is not None
        assert other != same

    def test_conditionings_count_by_their_content(self) -> None:
        tiny = tiny_models.build("flux")
        before = inputs_of_run(tiny)
        assert inputs_of_run(tiny) == before
        tiny.positive[0][0].add_(1.0)  # in place: the very same tensor
        assert inputs_of_run(tiny) != before

    def test_what_may_hide_a_state_is_never_the_same(self) -> None:
        tiny = tiny_models.build("flux")
        assert inputs_of_run(tiny, extra={"eta": 1.0}) is not None
        assert inputs_of_run(tiny, extra={"generator": torch.Generator()}) is None

        notebook: list[int] = []
        assert inputs_of_run(tiny, function=lambda *args: notebook.append(1)) is None

    def test_what_is_done_to_a_result_is_not_done_to_what_is_kept(self, comparison: Any) -> None:
        from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

        from speca.comfyui.asked import Asked

        inputs = run_inputs(tiny_models.build("flux"))
        results = [comparison.run(Asked.of(Noise_RandomNoise(1), *inputs)) for _ in range(2)]
        kept = results[0].uncached.latent["samples"].clone()
        for result in results:
            assert torch.equal(result.uncached.latent["samples"], kept)
            result.uncached.latent["samples"].zero_()
        third = comparison.run(Asked.of(Noise_RandomNoise(1), *inputs))
        assert third.kept
        assert torch.equal(third.uncached.latent["samples"], kept)

    def test_no_model_is_kept_in_memory(self) -> None:
        tiny = tiny_models.build("flux")
        kept, model = inputs_of_run(tiny), weakref.ref(tiny.model_patcher.model)
        del tiny
        gc.collect()
        assert model() is None
        assert kept != inputs_of_run(tiny_models.build("flux"))

    def test_noise_that_is_new_each_time_is_drawn_once_for_both_runs(self, comparison: Any) -> None:
        from speca.comfyui.asked import Asked

        class Fresh:
            seed, draws = 0, 0

            def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
                self.draws += 1
                return torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(self.draws))

        noise, inputs = Fresh(), run_inputs(tiny_models.build("flux"), threshold=0.0)
        first, second = (comparison.run(Asked.of(noise, *inputs)) for _ in range(2))
        assert noise.draws == 2
        for pair in (first, second):
            assert not pair.kept
            assert torch.equal(pair.uncached.latent["samples"], pair.speca.latent["samples"])
        assert not torch.equal(first.speca.latent["samples"], second.speca.latent["samples"])


def run_inputs(
    tiny: Any, model: Any = None, extra: Any = None, function: Any = None, **settings: Any
) -> tuple[Any, ...]:
    """guider, sampler, sigmas and latent of a run on `tiny`'s model with SpeCa."""
    import comfy.samplers
    from comfy.k_diffusion.sampling import sample_euler

    from speca.comfyui.attach import attach
    from speca.config import SpeCaConfig

    guider = comfy.samplers.CFGGuider(attach(model or tiny.model_patcher, SpeCaConfig(**settings)))
    guider.set_conds(tiny.positive, tiny.negative)
    guider.set_cfg(1.0)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    return guider, comfy.samplers.KSAMPLER(function or sample_euler, extra or {}), sigmas, tiny.latent


def inputs_of_run(tiny: Any, model: Any = None, **kwargs: Any) -> Any:
    from speca.comfyui.same_run import inputs_of

    return inputs_of(*run_inputs(tiny, model, **kwargs))


class TestCancel:
    # The network's call at which a run is interrupted: the warm-up, in the middle of each run, and their last calls.
    @pytest.mark.parametrize("call", [1, 6, 1 + STEPS, 7 + STEPS, 1 + 2 * STEPS])
    def test_nothing_is_left_behind(self, graphs: Any, monkeypatch: Any, call: int, comparison: Any) -> None:
        # Threshold 0: as many calls of the network as of the sampler.
        settings = {"threshold": 0.0}
        expected = latents(graphs.run(by_sampler_custom(graph(**settings))))
        made = counted(monkeypatch, interrupt_at=call)
        result = graphs.run(graph(**settings))
        assert not result.success
        assert "execution_interrupted" in [name for name, _ in result.messages]
        assert len(made) == call
        assert comparison._kept is None
        assert left_behind() == []
        again = graphs.run(graph(**settings))
        assert report(again)["uncached_run"] == "new"
        assert all(map(torch.equal, latents(again), expected))

    def test_what_was_kept_stays_when_a_fast_run_is_cancelled(self, graphs: Any, calls: list[None]) -> None:
        import comfy.model_management

        graphs.run(graph())
        with pytest.MonkeyPatch.context() as patch:
            interrupt = comfy.model_management.InterruptProcessingException
            patch.setattr(torch.nn.functional, "silu", _raising(interrupt()))
            assert not graphs.run(graph(threshold=0.2)).success
        calls.clear()
        told = report(graphs.run(graph(threshold=0.2)))
        assert told["uncached_run"] == "kept from before"
        assert len(calls) == STEPS + EMBEDDED + told["run"]["rejected"]

    def test_while_the_pictures_are_decoded(self, graphs: Any) -> None:
        import comfy.model_management
        import comfy.sd

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comfy.sd.VAE, "decode", _raising(comfy.model_management.InterruptProcessingException()))
            assert not graphs.run(graph(EMOJI)).success
        assert report(graphs.run(edited(graph(EMOJI), "2", threshold=0.07)))["uncached_run"] == "kept from before"

    def test_a_lack_of_memory_is_raised_as_it_is(self, graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import comfy.ldm.flux.model as flux

        monkeypatch.setattr(flux.Flux, "forward", _raising(torch.OutOfMemoryError("full")))
        result = graphs.run(graph())
        assert not result.success
        assert "OutOfMemoryError" in result.error["exception_type"]


def _raising(error: Exception) -> Callable[..., Any]:
    def raises(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raises


def left_behind() -> list[str]:
    """What a run may leave: blocks and networks with another forward, and SpeCa still standing aside or witnessed."""
    import comfy.model_management

    from speca.comfyui import attach

    loaded = [each.model for each in comfy.model_management.current_loaded_models if each.model is not None]
    assert loaded
    modules = [name for each in loaded for name, module in each.model.named_modules() if "forward" in vars(module)]
    return modules + [name for name in ("_aside", "_witness", "_settings") if getattr(attach, name).get()]


def test_both_runs_show_their_progress(graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils

    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *rest, **more: shown.append((value, total))
    )
    graphs.run(graph())
    ends = [(1, STEPS), (STEPS, STEPS)]  # between them, newer versions leave out steps that come too fast
    assert [step for step in shown if step[0] in (1, STEPS)] == [(1, 1), *ends, *ends]
    assert len(shown) > 5
    shown.clear()
    graphs.run(graph(threshold=0.2))
    assert [step for step in shown if step[0] in (1, STEPS)] == ends


def test_without_speca_an_error_says_how_to_mend_it(graphs: Any) -> None:
    result = graphs.run(edited(graph(), "4", model=["1", 0]))
    assert not result.success
    assert "Put a SpeCa node (not bypassed) between the model and the guider" in result.error["exception_message"]


def test_without_a_vae_there_is_no_picture(graphs: Any) -> None:
    asked = graph()
    told = report(result := graphs.run(asked))
    assert "images" not in result.outputs["7"]
    assert (told["psnr"], told["ssim"]) == (None, None)
    assert "no vae" in told["ssim_by"]
    assert told["latent_error"] > 0
    asked["11"] = {"class_type": "PreviewImage", "inputs": {"images": ["7", 2]}}
    blocked = graphs.run(edited(asked, "2", threshold=0.1))
    assert "11" not in blocked.outputs
    assert any("connect a VAE" in data["exception_message"] for data in blocked.sent("execution_error"))


def test_a_model_that_speca_does_not_take_is_compared_and_the_report_says_why(graphs: Any) -> None:
    told = report(graphs.run(edited(graph(), "1", name="sd15")))
    assert told["latent_error"] == 0
    assert "no adapter for UNetModel" in told["summary"]


class TestTrueErrors:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_they_are_those_of_the_networks_own_answers(self, graphs: Any, batch: int) -> None:
        """Against `truth`, which computes them from outside."""
        asked = edited(edited(graph(), "1", batch_size=batch), "7", true_errors=True)
        with truth.told() as told:
            run = report(result := graphs.run(asked))
        by_call = [told[i : i + batch] for i in range(0, len(told), batch)]
        assert len(by_call) == len(run["calls"]) == STEPS
        n_accepted = 0
        record = json.loads(result.outputs["7"]["speca"][0])
        assert [call["call"] for call in record["calls"]] == list(range(STEPS))
        # As the panel is told them: of each sample.
        shown = [row.get("true") for call in record["calls"] for row in call["rows"]]
        assert [value is None for value in shown] == [sample.outcome != "accepted" for sample in told]
        known = [sample.true for sample in told if sample.outcome == "accepted"]
        assert [value for value in shown if value is not None] == pytest.approx(known, rel=1e-3)
        for call, samples in zip(run["calls"], by_call, strict=True):
            accepted = [sample.true for sample in samples if sample.outcome == "accepted"]
            n_accepted += len(accepted)
            assert ("true" in call) == bool(accepted)
            if accepted:
                assert call["true"] == pytest.approx(max(accepted), rel=1e-3)
                assert call["judged"] > 0
        assert run["true_errors"]["accepted"] == n_accepted > 0
        assert run["true_errors"]["true"]["worst"] == pytest.approx(max(c.get("true", 0) for c in run["calls"]))

    def test_each_costs_one_call_beside_the_run_and_none_of_its_time(self, graphs: Any, calls: list[None]) -> None:
        plain = latents(graphs.run(graph()))
        calls.clear()
        told = report(result := graphs.run(edited(graph(), "7", true_errors=True)))
        assert len(calls) == STEPS + EMBEDDED + told["run"]["rejected"] + told["run"]["accepted"]
        assert torch.equal(latents(result)[1], plain[1])
        assert told["uncached_run"] == "kept from before"
        assert told["true_errors"]["seconds"] > 0

    def test_the_runs_clock_stands_still_meanwhile(self) -> None:
        now = itertools.count()
        witness = Witness("relative_l2", RunClock(lambda: float(next(now))))
        output = (torch.ones(2, 3),)
        network = SimpleNamespace(full=lambda *args: SimpleNamespace(output=(2 * torch.ones(2, 3),)))
        rows = (Row(0, "full", "warm_up"), Row(1, "accepted", "within", 0.1, 0.2))
        record = CallRecord(4, 0, 1.0, (0,), 1.0, 1.0, rows)
        amended: list[CallRecord] = []
        witness.tells(amended.append)
        witness.see(record, 2, [0.3, 0.4], output, network)
        assert [(row.judged, row.true) for row in amended[0].rows] == [(None, None), (0.4, pytest.approx(0.5))]
        assert witness.seen == {4: (TrueError(1, 0.4, pytest.approx(0.5)),)}
        assert witness.clock.aside == 1.0
        assert witness.clock() == 1.0


COMPARISON = """
import {{ comparisonOf }} from {module}
process.stdout.write(JSON.stringify(comparisonOf({prompt}, "2", "3")))
"""


def by_the_button(prompt: dict[str, Any]) -> dict[str, Any]:
    """What the panel's Compare button queues for a graph whose sampler is 3."""
    module = (Path(__file__).resolve().parents[1] / "web" / "compare.js").as_uri()
    script = COMPARISON.format(module=json.dumps(module), prompt=json.dumps(prompt))
    told = subprocess.run(
        [shutil.which("node"), "--input-type=module", "-e", script], capture_output=True, check=True, timeout=60
    )
    return json.loads(told.stdout)["prompt"]


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js")
@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("KSampler", {"denoise": 1.0}),
        ("KSampler", {"denoise": 0.7, "sampler_name": "dpmpp_2m_sde"}),
        ("KSampler", {"denoise": 1.0, "sampler_name": "ddim"}),
        ("KSamplerAdvanced", {}),
        ("KSamplerAdvanced", {"end_at_step": 8, "return_with_leftover_noise": "enable"}),
        ("KSamplerAdvanced", {"start_at_step": 4, "add_noise": "disable"}),
        ("SamplerCustom", {"add_noise": True}),
    ],
    ids=str,
)
def test_the_buttons_runs_are_those_of_the_graphs_own_sampler(graphs: Any, kind: str, inputs: dict[str, Any]) -> None:
    """The sampler is taken apart (web/compare.js); put together again it gives the same to the last digit."""
    given = {"model": ["2", 0], "positive": ["1", 2], "negative": ["1", 3], "cfg": 1.0, "latent_image": ["1", 1]}
    steps = {"steps": STEPS, "scheduler": "simple", "sampler_name": "euler"}
    own = {
        "KSampler": {"seed": 5, **steps},
        "KSamplerAdvanced": {
            "noise_seed": 5,
            **steps,
            "add_noise": "enable",
            "start_at_step": 0,
            "end_at_step": 10000,
            "return_with_leftover_noise": "disable",
        },
        "SamplerCustom": {"noise_seed": 5, "sampler": ["5", 0], "sigmas": ["6", 0]},
    }
    made = graph(threshold=1.0, threshold_end_factor=100.0)
    prompt = {key: node for key, node in made.items() if key in ("1", "2", "5", "6")}
    prompt["3"] = {"class_type": kind, "inputs": {**given, **own[kind], **inputs}}
    prompt["9"] = {"class_type": "TinyLatentProbe", "inputs": {"samples": ["3", 0], "name": "own"}}
    result = graphs.run(prompt)
    assert result.success, result.error
    queued = by_the_button({key: node for key, node in prompt.items() if key != "9"})
    queued["9"] = {"class_type": "TinyLatentProbe", "inputs": {"samples": ["3.compare", 1], "name": "button"}}
    compared = graphs.run(queued)
    assert compared.success, compared.error
    button, own_samples = (torch.load(each.outputs["9"]["latent"][0], weights_only=True) for each in (compared, result))
    assert torch.equal(button, own_samples)
    assert json.loads(compared.outputs["3.compare"]["speca_compare"][0])["true_errors"]["accepted"] > 0


class TestFigures:
    def test_psnr(self) -> None:
        assert psnr(0.0) == math.inf
        assert psnr(mean_square(torch.zeros(1, 4, 4, 3), torch.full((1, 4, 4, 3), 0.1)).item()) == pytest.approx(20.0)

    def test_relative_error_is_of_all_tensors_together(self) -> None:
        reference = (torch.tensor([3.0]), torch.tensor([4.0]))
        assert relative_error((torch.tensor([3.0]), torch.tensor([5.0])), reference) == pytest.approx(0.2)
        assert relative_error(reference, reference) == 0.0
        assert relative_error((torch.ones(1),), (torch.zeros(1),)) == math.inf

    def test_ssim_is_left_out_and_said_so_where_nothing_measures_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pictures = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
        value, by = ssim(pictures, pictures)
        assert value == pytest.approx(1.0)
        assert "scikit-image" in by or "torchmetrics" in by
        for name in ("torchmetrics.functional.image", "skimage.metrics"):
            monkeypatch.setitem(sys.modules, name, None)
        assert ssim(pictures, pictures) == (None, NO_SSIM)

    def test_of_a_long_video_some_frames_are_measured(self) -> None:
        frames = torch.rand(40, 12, 12, 3, generator=torch.Generator().manual_seed(0))
        value, by = ssim(frames, frames)
        assert value == pytest.approx(1.0)
        assert by.endswith(", 9 of 40 pictures")
        assert ssim(frames[:, :8], frames[:, :8])[0] is None

    def test_what_json_cannot_hold_is_told_in_words(self) -> None:
        told = report_of(Figures(2.0, 0.0, False, 0.0, math.inf), None)
        assert (told["psnr"], told["speedup"]) == ("infinite", None)
        assert json.loads(in_lines(told)) == told
        assert told["summary"].startswith("not timed: 0.00 s instead of 2.00 s")
        assert report_of(Figures(1.0, 1.0, False, math.nan, math.nan), None)["psnr"] is None
