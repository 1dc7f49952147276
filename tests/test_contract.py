"""What SpeCa promises of every architecture. One suite, run over all of `contract_models.NAMES`.

The models are genuine classes of ComfyUI with random weights: nothing here speaks of quality or of acceptance rates.
Thresholds are therefore extreme: `ACCEPT` checks every forecast and lets it stand, `TRUST` every second, `REJECT` lets
none stand.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import contract_models
import contract_table
import tiny_models

pytestmark = [pytest.mark.comfy, pytest.mark.usefixtures("endless_patience")]

STEPS = 6
WARM_UP = 2
ACCEPT = {
    "threshold": 1e9,
    "order": 1,
    "threshold_end_factor": 1.0,
    "warmup_steps": WARM_UP,
    "max_consecutive": 100,
    "check_every": 1,
}
TRUST = ACCEPT | {"check_every": 2}
REJECT = ACCEPT | {"threshold": 1e-12}
SOME = ACCEPT | {"max_consecutive": 1}


@pytest.fixture(scope="session", autouse=True)
def _table(request: pytest.FixtureRequest) -> None:
    if not request.config.pluginmanager.has_plugin("contract_table"):
        request.config.pluginmanager.register(contract_table, "contract_table")


def attached(patcher: Any, listener: Any = None, **settings: Any) -> Any:
    from speca.comfyui.attach import attach
    from speca.config import SpeCaConfig

    return attach(patcher, SpeCaConfig(**settings), listener)


def record_of(patcher: Any) -> Any:
    from speca.comfyui.attach import attachment_of

    return attachment_of(patcher).run_of()


def outcomes(patcher: Any) -> list[str]:
    return [call.outcome for call in record_of(patcher).calls]


def sample(tiny: Any, patcher: Any = None, **options: Any) -> torch.Tensor:
    patcher = tiny.model_patcher if patcher is None else patcher
    return tiny_models.ksample(*tiny._replace(model_patcher=patcher), **({"steps": STEPS} | options))


def anatomy_of(tiny: Any) -> Any:
    from speca.adapters import recognise

    return recognise(tiny.model_patcher.model.diffusion_model)


def block_list(tiny: Any) -> tuple[list[nn.Module], nn.Module]:
    """(the blocks that a speculated call leaves out, the one that verifies)"""
    anatomy = anatomy_of(tiny)
    return [block for _, block in anatomy.skipped], anatomy.verification_block


def n_rows(latent: Any) -> int:
    """Rows of what a network is given: a tensor, or a list of them (picture and sound)."""
    return (latent[0] if isinstance(latent, list) else latent).shape[0]


class Subject:
    """A tiny model and what its unpatched sampling gives, computed once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tiny = contract_models.build(name)

    @functools.cached_property
    def plain(self) -> torch.Tensor:
        return sample(self.tiny)

    @functools.cached_property
    def three(self) -> Any:
        """The same model with a batch of three."""
        return contract_models.build(self.name, batch=3)


@pytest.fixture(scope="module", params=contract_models.NAMES)
def subject(request: pytest.FixtureRequest, comfy: None) -> Subject:
    missing = contract_models.missing(request.param)
    if missing:
        pytest.skip(missing)
    return Subject(request.param)


class Work:
    """A listener that notes, for each call of a run, how much was done inside each block.

    Done is a call of any module inside the block: a block whose forward is exchanged is called, but does nothing.
    """

    def __init__(self, tiny: Any) -> None:
        self._skippable, self._verifying = block_list(tiny)
        self._done = {id(block): 0 for block in (*self._skippable, self._verifying)}
        self.calls: list[tuple[list[int], int]] = []

    @contextmanager
    def counting(self) -> Iterator[Work]:
        with ExitStack() as stack:
            for block in (*self._skippable, self._verifying):
                for inner in list(block.modules())[1:]:
                    stack.callback(inner.register_forward_hook(functools.partial(self._count, id(block))).remove)
            yield self

    def _count(self, block: int, *_: Any) -> None:
        self._done[block] += 1

    def run_started(self, *_: Any) -> None: ...

    def run_ended(self, *_: Any) -> None: ...

    def call_made(self, *_: Any) -> None:
        self.calls.append(([self._done[id(b)] for b in self._skippable], self._done[id(self._verifying)]))
        self._done = dict.fromkeys(self._done, 0)


def snapshot(patcher: Any) -> dict[str, Any]:
    """Everything about a model that a run must leave as it was. ComfyUI marks what it loads, so it must have run."""
    network = patcher.model.diffusion_model
    return {
        "weights": {name: value.cpu().clone() for name, value in network.state_dict().items()},
        "forwards": {name: module.__dict__.get("forward") for name, module in network.named_modules()},
        "attributes": {name: sorted(module.__dict__) for name, module in network.named_modules()},
        "hooks": {name: len(module._forward_pre_hooks) for name, module in network.named_modules()},
        "options": repr(sorted(patcher.model_options)),
        "transformer_options": repr(sorted(patcher.model_options.get("transformer_options", {}))),
        "wrappers": {kind: {key: list(w) for key, w in by.items()} for kind, by in patcher.wrappers.items()},
    }


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights, weights_after = before.pop("weights"), after.pop("weights")
    assert before == after
    assert weights.keys() == weights_after.keys()
    assert all(torch.equal(value, weights_after[name]) for name, value in weights.items())


@contextmanager
def in_each_call(patcher: Any, action: Callable[..., None]) -> Iterator[Any]:
    """A clone of the patcher. `action(model, network forward, args, kwargs)` before each call of its network."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        model = executor.class_obj
        network = model.diffusion_model
        native = network.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            action(network, native, args, kwargs)
            return native(*args, **kwargs)

        network.__dict__["forward"] = forward
        try:
            return executor(*args, **kwargs)
        finally:
            del network.__dict__["forward"]

    clone = patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "in_each_call", wrapper)
    yield clone


def exact_and_repeated(
    tiny: Any, change: Callable[[torch.Tensor], torch.Tensor], relative: Callable[[int], bool] | None = None
) -> list[tuple[Any, Any, bool]]:
    """For the first and the last call of a run: (its output, that of its last block and head alone, inputs unchanged).

    The last block is given the features that entered it in the full call, after `change`; of rows that are `relative`,
    without the embedded input that they are to be put on.
    """
    from speca.adapters import recognise
    from speca.comfyui.compiled import Forwards
    from speca.comfyui.network import BoundNetwork, copied

    found: list[tuple[Any, Any, bool]] = []

    def action(network: nn.Module, native: Any, args: Any, kwargs: Any) -> None:
        inputs = {k: v for k, v in kwargs.items() if k != "transformer_options"}
        before = copied([list(args), inputs])
        forwards = Forwards(native, native, False)
        bound = BoundNetwork(recognise(network), forwards, args, kwargs, n_rows(args[0]), True)
        exact = bound.full(None, True, keep_embedded=relative is not None)
        assert exact.features is not None
        given, rows = exact.features, []
        if relative is not None:
            assert exact.embedded is not None
            rows = [relative(row) for row in range(n_rows(args[0]))]
            for feature, embedded in zip(given, exact.embedded, strict=True):
                for row in itertools.compress(range(len(rows)), rows):
                    feature[row] -= embedded[row]
        again = bound.speculate(tuple(change(feature.clone()) for feature in given), None, rows)
        found.append((exact.output, again, same([list(args), inputs], before)))

    with in_each_call(tiny.model_patcher, action) as patcher:
        sample(tiny, patcher, steps=2)
    return [found[0], found[-1]]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """|one - other| / |other|; batches of another size differ by rounding, which a sampler may enlarge."""
    return float(torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return all(same(a, b) for a, b in zip(one, other, strict=True))
    return True


class TestContract:
    def test_exact_features_give_the_exact_output(self, subject: Subject) -> None:
        for full, repeated, unchanged in exact_and_repeated(subject.tiny, lambda feature: feature):
            assert all(torch.equal(a, b) for a, b in zip(full, repeated, strict=True))
            assert unchanged

    def test_features_relative_to_the_embedded_input_give_the_same_output(self, subject: Subject) -> None:
        """As they are kept where the sampler adds noise, and in some rows where noise is predicted; taking the input
        off and adding it again rounds."""
        for relative in (lambda row: True, lambda row: bool(row % 2)):
            for full, repeated, unchanged in exact_and_repeated(subject.tiny, lambda feature: feature, relative):
                assert all(distance(b, a) < 1e-4 for a, b in zip(full, repeated, strict=True))
                assert unchanged

    def test_other_features_give_another_output(self, subject: Subject) -> None:
        for full, repeated, _ in exact_and_repeated(subject.tiny, lambda feature: feature.flip(-1)):
            assert distance(full[0], repeated[0]) > 1e-2

    def test_threshold_zero_is_the_unpatched_model(self, subject: Subject) -> None:
        patcher = attached(subject.tiny.model_patcher, threshold=0.0)
        assert torch.equal(sample(subject.tiny, patcher), subject.plain)
        assert set(outcomes(patcher)) == {"full"}

    def test_rejecting_everything_is_the_unpatched_model(self, subject: Subject) -> None:
        patcher = attached(subject.tiny.model_patcher, **REJECT)
        assert torch.equal(sample(subject.tiny, patcher), subject.plain)
        assert outcomes(patcher) == ["full"] * WARM_UP + ["rejected"] * (STEPS - WARM_UP)

    def counted(self, subject: Subject, settings: dict[str, Any]) -> tuple[Work, Any, torch.Tensor]:
        """(the work of each call, the patched model, its samples) of a run with `settings`."""
        work = Work(subject.tiny)
        patcher = attached(subject.tiny.model_patcher, work, **settings)
        with work.counting():
            samples = sample(subject.tiny, patcher)
        assert torch.isfinite(samples).all()
        return work, patcher, samples

    def test_an_accepted_call_runs_the_last_block_alone(self, subject: Subject) -> None:
        work, patcher, samples = self.counted(subject, SOME)
        assert not torch.equal(samples, subject.plain)
        assert outcomes(patcher) == ["full", "full", "accepted", "full", "accepted", "full"]
        in_full = work.calls[0][0]
        for outcome, (skippable, verifying) in zip(outcomes(patcher), work.calls, strict=True):
            assert verifying > 0
            if outcome != "accepted":
                assert skippable == in_full
                assert all(skippable)
            elif subject.name in contract_models.HALF_A_BLOCK_ALWAYS_RUNS:
                assert all(0 < done < full for done, full in zip(skippable, in_full, strict=True))
            else:
                assert not any(skippable)

    def test_a_trusted_call_runs_none_of_the_network(self, subject: Subject) -> None:
        work, patcher, _ = self.counted(subject, TRUST)
        assert outcomes(patcher) == ["full", "full", "accepted", "trusted", "accepted", "accepted"]
        for outcome, (skippable, verifying) in zip(outcomes(patcher), work.calls, strict=True):
            assert (verifying > 0) == (outcome != "trusted")
            assert outcome != "trusted" or not any(skippable)

    def test_one_call_is_computed_first(self, subject: Subject) -> None:
        accepting = attached(subject.tiny.model_patcher, **(ACCEPT | {"warmup_steps": 1}))
        assert torch.isfinite(sample(subject.tiny, accepting)).all()
        # A lone anchor is checked by the sampler's latent, where the output is known to hold it.
        first = 2 if subject.name in contract_models.OUTPUT_WITHOUT_LATENT else 1
        assert outcomes(accepting)[: first + 1] == ["full"] * first + ["accepted"]

    def test_a_run_leaves_the_model_as_it_was(self, subject: Subject) -> None:
        assert torch.isfinite(subject.plain).all()
        unpatched = snapshot(subject.tiny.model_patcher)
        patcher = attached(subject.tiny.model_patcher, **SOME)
        before = snapshot(patcher)
        sample(subject.tiny, patcher)
        assert_unchanged(before, snapshot(patcher))
        assert_unchanged(unpatched, snapshot(subject.tiny.model_patcher))
        assert record_of(patcher).status == "finished"

    def test_an_exception_leaves_the_model_as_it_was(self, subject: Subject) -> None:
        import comfy.model_management

        from speca.adapters.base import exchanged_forward

        assert torch.isfinite(subject.plain).all()
        patcher = attached(subject.tiny.model_patcher, **REJECT)
        before = snapshot(patcher)
        stage, verifying = (anatomy := anatomy_of(subject.tiny)).verification_stage, anatomy.verification_block
        native = stage.native(verifying)
        # The third run of the block is the first speculated call's, the fourth that call's in full.
        for run, error, status in (
            (2, RuntimeError("a broken block"), "failed"),
            (4, RuntimeError("a broken block"), "failed"),
            (3, torch.OutOfMemoryError("no memory left"), "failed"),
            (4, comfy.model_management.InterruptProcessingException(), "interrupted"),
            (5, comfy.model_management.InterruptProcessingException(), "interrupted"),
        ):
            runs = iter(range(1, 100))

            def fail(
                *args: Any, run: int = run, error: BaseException = error, runs: Iterator[int] = runs, **kwargs: Any
            ) -> Any:
                if next(runs) == run:
                    raise error
                return native(*args, **kwargs)

            fail.__module__ = native.__module__  # another pack's code in a block is left alone
            with exchanged_forward(verifying, fail, stage.method), pytest.raises(type(error)) as raised:
                sample(subject.tiny, patcher)
            assert raised.value is error
            assert record_of(patcher).status == status
        assert_unchanged(before, snapshot(patcher))
        assert torch.equal(sample(subject.tiny, patcher), subject.plain)

    def test_a_second_run_and_a_second_sampler_equal_a_first(self, subject: Subject) -> None:
        """The graph of a hires fix: one patched model, two samplers, and then the prompt queued again."""
        patcher = attached(subject.tiny.model_patcher, **SOME)

        def both(patcher: Any) -> tuple[torch.Tensor, torch.Tensor]:
            first = sample(subject.tiny, patcher)
            latent = subject.tiny.latent | {"samples": first}
            return first, sample(subject.tiny._replace(latent=latent), patcher, steps=5, denoise=0.6, seed=7)

        one, two = both(patcher)
        again, two_again = both(patcher)
        assert torch.equal(one, again)
        assert torch.equal(two, two_again)
        fresh = attached(subject.tiny.model_patcher, **SOME)
        second = subject.tiny._replace(latent=subject.tiny.latent | {"samples": one})
        assert torch.equal(two, sample(second, fresh, steps=5, denoise=0.6, seed=7))
        assert outcomes(patcher) == ["full", "full", "accepted", "full", "accepted"]

    def test_another_resolution_starts_afresh(self, subject: Subject) -> None:
        larger = subject.tiny._replace(latent=contract_models.wider(subject.tiny.latent))
        try:
            plain = sample(larger, steps=4)
        except (RuntimeError, AssertionError, ValueError) as error:
            pytest.skip(f"the unpatched model does not take a wider latent: {error}")
        patcher = attached(subject.tiny.model_patcher, **REJECT)
        sample(subject.tiny, patcher, steps=4)
        assert torch.equal(sample(larger, patcher, steps=4), plain)
        assert torch.equal(sample(subject.tiny, patcher), subject.plain)

    def test_cond_and_uncond_are_apart_batched_or_split(
        self, subject: Subject, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if subject.tiny.cfg == 1.0:
            pytest.skip("sampled without guidance: there is one conditioning only")
        if subject.name in contract_models.NEEDS_COND_AND_UNCOND:
            pytest.skip("the network wants both conditionings in one call")
        patcher = attached(subject.tiny.model_patcher, **SOME)
        batched = sample(subject.tiny, patcher)
        assert {call.conds for call in record_of(patcher).calls} <= {(0, 1), (1, 0)}
        # No memory for both at once: ComfyUI evaluates one after the other.
        monkeypatch.setattr(subject.tiny.model_patcher.model, "memory_required", lambda *_, **__: 1e30)
        split = sample(subject.tiny, patcher)
        assert {call.conds for call in record_of(patcher).calls} == {(0,), (1,)}
        for cond in (0, 1):
            of_cond = [call.outcome for call in record_of(patcher).calls if call.conds == (cond,)]
            assert of_cond == ["full", "full", "accepted", "full", "accepted", "full"]
        if not anatomy_of(subject.tiny).architecture.mixes_rows:  # else they are two pictures unpatched, too
            assert distance(split, batched) < 1e-3

    def test_one_rejected_sample_is_recomputed_alone(self, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
        import speca.comfyui.network
        import speca.session

        rejected, judged, computed = 1, iter(range(10**6)), []
        judge, full = speca.session.judge, speca.comfyui.network.BoundNetwork.full

        def reject_one(error: float, threshold: float, accumulated: float) -> Any:
            return judge(float("inf") if next(judged) % 3 == rejected else error, threshold, accumulated)

        def note_rows(self: Any, rows: Any, *options: bool) -> Any:
            computed.append(rows if rows is None else [row % 3 for row in rows])
            return full(self, rows, *options)

        def run(**settings: Any) -> torch.Tensor:
            return sample(three, attached(three.model_patcher, **settings))

        three = subject.three
        n_chunks = 1 if three.cfg == 1.0 else 2
        try:
            plain = sample(three)
        except (RuntimeError, ValueError) as error:
            pytest.skip(f"the unpatched model does not take a batch: {error}")
        anatomy = anatomy_of(three)
        accepting = run(**ACCEPT)
        if anatomy.verification_stage.batch_dim is None:  # its rows cannot be told apart: nothing is kept
            assert torch.equal(accepting, plain)
            return
        near = distance(accepting[rejected], plain[rejected]) / 10
        assert near > 1e-4
        monkeypatch.setattr(speca.session, "judge", reject_one)
        monkeypatch.setattr(speca.comfyui.network.BoundNetwork, "full", note_rows)
        mixed = run(**ACCEPT)
        if anatomy.architecture.mixes_rows:
            assert computed == [None] * STEPS
            assert torch.equal(mixed, plain)
            return
        assert computed == [None] * WARM_UP + [[rejected] * n_chunks] * (STEPS - WARM_UP)
        assert distance(mixed[rejected], plain[rejected]) < near
        for accepted in (0, 2):
            assert distance(mixed[accepted], accepting[accepted]) < near


class Sampling:
    """Shared by the tests below: any settings of a run, on a few architectures that stand for the rest."""

    @staticmethod
    def keeps_the_promises(tiny: Any, run: Callable[[Any], torch.Tensor], patcher: Any = None) -> list[str]:
        """Rejecting everything is the unpatched run bitwise; forecasts are accepted otherwise. -> their outcomes"""
        patcher = tiny.model_patcher if patcher is None else patcher
        rejecting, accepting = attached(patcher, **REJECT), attached(patcher, **ACCEPT)
        assert torch.equal(run(rejecting), run(patcher))
        totals = record_of(rejecting).totals
        assert record_of(rejecting).header.native is None
        assert totals.accepted == 0
        assert totals.rejected > 0
        assert torch.isfinite(run(accepting)).all()
        assert record_of(accepting).totals.accepted > 0
        assert record_of(accepting).totals.rejected == 0
        return outcomes(accepting)


@pytest.fixture(scope="module", params=["flux", "sd3", "wan21"])
def tiny(request: pytest.FixtureRequest, comfy: None) -> Any:
    return contract_models.build(request.param)


class TestSamplers(Sampling):
    @pytest.mark.parametrize(
        ("sampler", "calls"),
        [
            ("euler", 6),
            ("heun", 11),
            ("dpm_2", 11),
            ("dpmpp_sde", 11),
            ("uni_pc", 6),
            ("lcm", 6),
            ("dpmpp_2m", 6),
        ],
    )
    def test_samplers(self, tiny: Any, sampler: str, calls: int) -> None:
        """Also those that call the model more than once a step, some twice at the same sigma."""
        found = self.keeps_the_promises(tiny, lambda patcher: sample(tiny, patcher, sampler=sampler))
        assert len(found) == calls

    @pytest.mark.parametrize("scheduler", ["normal", "beta", "karras", "ddim_uniform"])
    def test_schedulers(self, tiny: Any, scheduler: str) -> None:
        self.keeps_the_promises(tiny, lambda patcher: sample(tiny, patcher, scheduler=scheduler))

    @pytest.mark.parametrize(
        "levels",
        [
            [1.0, 0.8, 0.8, 0.6, 0.6, 0.3, 0.0],
            [1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0],
            [0.9, 0.8, 0.7, 0.65, 0.6, 0.5],
        ],
        ids=["repeated", "two_zeros", "ends_early"],
    )
    def test_uneven_sigmas(self, tiny: Any, levels: list[float]) -> None:
        import comfy.sample
        import comfy.samplers

        sigmas = torch.tensor(levels) * float(tiny.model_patcher.model.model_sampling.sigma_max)

        def run(patcher: Any) -> torch.Tensor:
            latent = comfy.sample.fix_empty_latent_channels(patcher, tiny.latent["samples"])
            noise = comfy.sample.prepare_noise(latent, 3)
            sampler = comfy.samplers.KSAMPLER(euler_without_division)
            conditioning = (tiny.positive, tiny.negative)
            return comfy.sample.sample_custom(
                patcher, noise, tiny.cfg, sampler, sigmas, *conditioning, latent, disable_pbar=True, seed=3
            )

        self.keeps_the_promises(tiny, run)


def euler_without_division(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any
) -> torch.Tensor:
    """ComfyUI's euler divides by sigma; this one takes a schedule that calls the model at sigma 0, too."""
    for sigma, following in itertools.pairwise(sigmas):
        denoised = model(x, sigma * x.new_ones(x.shape[0]), **extra_args)
        share = following / sigma if sigma > 0 else 0.0
        x = denoised + share * (x - denoised)
    return x


class TestSettings(Sampling):
    def test_inpainting(self, tiny: Any) -> None:
        shape = tiny.latent["samples"].shape
        mask = torch.zeros(1, 1, *shape[-2:])
        mask[..., : shape[-1] // 2] = 1.0
        masked = tiny._replace(latent={"samples": tiny_models.gaussian(*shape, seed=5), "noise_mask": mask})
        self.keeps_the_promises(masked, lambda patcher: sample(masked, patcher))

    def test_denoise_below_one(self, tiny: Any) -> None:
        latent = {"samples": tiny_models.gaussian(*tiny.latent["samples"].shape, seed=5)}
        started = tiny._replace(latent=latent)
        found = self.keeps_the_promises(started, lambda patcher: sample(started, patcher, denoise=0.5))
        assert len(found) == STEPS

    def test_lora(self, tiny: Any) -> None:
        patcher = tiny.model_patcher.clone()
        name = next(n for n, p in patcher.model.named_parameters() if "blocks.0." in n and p.ndim == 2)
        weight = patcher.model.get_parameter(name)
        generator = torch.Generator().manual_seed(0)
        difference = torch.randn(weight.shape, generator=generator)
        assert patcher.add_patches({name: ("diff", (difference,))}) == [name]
        plain = sample(tiny)
        assert not torch.equal(sample(tiny, patcher), plain)
        self.keeps_the_promises(tiny, lambda p: sample(tiny, p), patcher)
        assert torch.equal(sample(tiny), plain)

    def test_another_pack_s_block_patch_stays_in_the_chain(self, tiny: Any) -> None:
        """What a pack does around blocks shows in the exact calls, and around the last block in accepted ones too."""
        depth = len(block_list(tiny)[0])
        kind, index = ("single_block", 2) if depth == 4 else ("double_block", depth)
        seen: list[int] = []

        def flipped(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            seen.append(1)
            out = extra["original_block"](args)
            return out | {"img": out["img"].flip(-1)}

        patcher = tiny.model_patcher.clone()
        patcher.set_model_patch_replace(flipped, "dit", kind, index)
        patcher.set_model_patch_replace(lambda a, e: seen.append(0) or e["original_block"](a), "dit", "double_block", 0)
        assert distance(sample(tiny, patcher), sample(tiny)) > 1e-3
        seen.clear()
        found = self.keeps_the_promises(tiny, lambda p: sample(tiny, p), patcher)
        # Unpatched 6 calls; rejecting 6 and 4 speculated ones before them; accepting 6; and both of these once more, to
        # see what is embedded.
        assert seen.count(1) == seen.count(0) == 24
        assert found.count("accepted") == 4

    def test_guidance_that_calls_again_with_a_patch_has_streams_of_its_own(self, tiny: Any) -> None:
        """Skip-layer guidance calls the positive prompt once more with a layer left out."""
        import comfy.samplers
        from comfy.model_patcher import set_model_options_patch_replace

        def leave_out(args: dict[str, Any], _: Any) -> dict[str, Any]:
            return {name: args[name] for name in ("img", "txt") if name in args}

        def guided(args: dict[str, Any]) -> torch.Tensor:
            options = args["model_options"].copy()
            options = set_model_options_patch_replace(options, leave_out, "dit", "double_block", 0)
            calc = comfy.samplers.calc_cond_batch
            (skipped,) = calc(args["model"], [args["cond"]], args["input"], args["sigma"], options)
            return args["denoised"] + 0.5 * (args["cond_denoised"] - skipped)

        patcher = tiny.model_patcher.clone()
        patcher.set_model_sampler_post_cfg_function(guided)
        assert distance(sample(tiny, patcher), sample(tiny)) > 1e-3
        found = self.keeps_the_promises(tiny, lambda p: sample(tiny, p), patcher)
        assert found == ["full"] * 4 + ["accepted"] * 8


class Residuals:
    """Stands in for a ControlNet: what it adds to the network's stream is random, and the same in every call."""

    def __init__(self, **shapes: list[tuple[int, ...]]) -> None:
        self.shapes = shapes

    def control(self) -> Any:
        import comfy.controlnet

        shapes = self.shapes

        class Control(comfy.controlnet.ControlBase):
            def get_control(self, x: torch.Tensor, t: Any, cond: Any, chunks: int, options: Any) -> Any:
                return {
                    name: [
                        tiny_models.gaussian(*shape, seed=i).to(x.device).expand(x.shape[0], -1, -1)
                        for i, shape in enumerate(of)
                    ]
                    for name, of in shapes.items()
                }

            def get_models(self) -> list[Any]:
                return []

        return Control()


@pytest.mark.parametrize(
    ("name", "residuals"),
    [
        ("flux", Residuals(input=[(1, 16, 64)] * 2, output=[(1, 16, 64)] * 3)),
        ("sd3", Residuals(output=[(1, 16, 128)] * 2)),
        ("qwen_image", Residuals(input=[(1, 16, 64)] * 2)),
        # It takes them off the list as it uses them: a rejected call would find none left.
        ("hunyuan_dit", Residuals(output=[(1, 16, 64)] * 2)),
    ],
)
def test_control_residuals(comfy: None, name: str, residuals: Residuals) -> None:
    tiny = contract_models.build(name)
    control = residuals.control()

    def controlled(conditioning: Any) -> Any:
        return [[features, options | {"control": control}] for features, options in conditioning]

    with_control = tiny._replace(positive=controlled(tiny.positive), negative=controlled(tiny.negative))
    assert distance(sample(with_control), sample(tiny)) > 1e-3
    Sampling.keeps_the_promises(with_control, lambda patcher: sample(with_control, patcher))
    for full, repeated, unchanged in exact_and_repeated(with_control, lambda feature: feature):
        assert torch.equal(full[0], repeated[0])
        assert unchanged


def test_a_full_call_does_not_run_the_head_again_for_the_embedded_input(comfy: None) -> None:
    tiny = contract_models.build("dit")
    heads: list[int] = []
    head = tiny.model_patcher.model.diffusion_model.final_layer
    handle = head.register_forward_hook(lambda *_: heads.append(1))
    patcher = attached(tiny.model_patcher, **SOME)
    try:
        sample(tiny, patcher)
    finally:
        handle.remove()
    assert outcomes(patcher) == ["full", "full", "accepted", "full", "accepted", "full"]
    assert len(heads) == 6 + 1  # once, to see whether it is what enters the first block


@pytest.mark.parametrize("schedule", ["standard_static", "standard_uniform"])
def test_context_windows(comfy: None, schedule: str) -> None:
    """Each window is a stream of its own. A schedule that moves the windows from step to step forecasts less."""
    from comfy_extras.nodes_context_windows import WanContextWindowsManualNode

    settings = {"context_length": 17, "context_overlap": 5, "context_schedule": schedule, "context_stride": 1}
    settings |= {"closed_loop": False, "fuse_method": "pyramid"}
    newer = {"freenoise": False}  # asked for from 0.4 on
    asked = inspect.signature(WanContextWindowsManualNode.execute).parameters
    settings |= {name: value for name, value in newer.items() if name in asked}
    tiny = contract_models.build("wan21")
    tiny = tiny._replace(latent={"samples": torch.zeros(1, 16, 9, 8, 8)})
    (patcher,) = WanContextWindowsManualNode.execute(tiny.model_patcher, **settings).args
    found = Sampling.keeps_the_promises(tiny, lambda p: sample(tiny, p), patcher)
    accepting = attached(patcher, **ACCEPT)
    sample(tiny, accepting)
    windows = [call.window for call in record_of(accepting).calls]
    assert len(set(windows)) > 1
    assert None not in windows
    if schedule == "standard_static":
        for window in set(windows):
            of_window = [outcome for outcome, w in zip(found, windows, strict=True) if w == window]
            assert of_window == ["full"] * WARM_UP + ["accepted"] * (STEPS - WARM_UP)


def test_several_conds_with_areas_and_strengths(comfy: None) -> None:
    """Two positive prompts, one of them on half of the picture: another shape, in a call of its own."""
    tiny = contract_models.build("flux")
    features, options = tiny.positive[0]
    half = options | {"area": (8, 4, 0, 0), "strength": 0.7}
    both = tiny._replace(positive=[[features, options], [tiny_models.gaussian(*features.shape, seed=9), half]])
    assert distance(sample(both), sample(tiny)) > 1e-3
    Sampling.keeps_the_promises(both, lambda patcher: sample(both, patcher))


def test_a_copied_anchor_is_not_taken_for_verified(comfy: None) -> None:
    """Stable Audio tells its blocks the time through a token among the features: a copied anchor copies that, too."""
    tiny = contract_models.build("stable_audio")
    patcher = attached(tiny.model_patcher, **(REJECT | {"order": 0}))
    assert torch.equal(sample(tiny, patcher), sample(tiny))
