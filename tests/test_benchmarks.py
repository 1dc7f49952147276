"""The benchmark's own arithmetic and rivals, checked by hand; and the harness once through on a tiny model."""

from __future__ import annotations

import csv
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from measure import quality
from measure.curve import Point, at, at_least, frontier
from measure.quality import Cost

# --- Arithmetic -------------------------------------------------------------------------------------------------------


def test_psnr_of_a_constant_error_is_its_logarithm():
    reference = torch.full((2, 3, 4, 4), 0.5)
    picture = reference.clone()
    picture[0] += 0.1
    picture[1] -= 0.01
    assert quality.psnr(picture, reference) == pytest.approx([20.0, 40.0], abs=1e-4)


def test_psnr_of_equal_pictures_is_finite():
    picture = torch.rand(1, 3, 4, 4)
    assert quality.psnr(picture, picture) == [quality.PSNR_OF_EQUALS]


def test_ssim_is_one_for_equals_and_less_for_others_frame_by_frame():
    pytest.importorskip("skimage")
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, 2, 16, 16, generator=generator)
    other = clip.clone()
    other[:, :, 1] = torch.rand(1, 3, 16, 16, generator=generator)
    assert quality.ssim(clip, clip) == pytest.approx([1.0])
    (changed,) = quality.ssim(other, clip)
    (frame,) = quality.ssim(other[:, :, 1], clip[:, :, 1])
    assert changed == pytest.approx((1 + frame) / 2)
    assert frame < 0.5


def test_relative_error_by_hand():
    assert quality.relative_error(torch.tensor([[3.0, 5.0]]), torch.tensor([[3.0, 4.0]])) == pytest.approx([0.2])


def test_cost_counts_one_block_for_a_verified_and_a_block_more_for_a_rejected_call():
    cost = Cost(native=50, full=10, verified=36, rejected=4)
    assert cost.asked == 50
    assert cost.blocks(57) == 10 * 57 + 36 * 1 + 4 * 58
    assert cost.speedup(57) == pytest.approx(50 * 57 / 838)
    assert Cost(native=50, full=10).speedup(57) == pytest.approx(5.0)  # a run with ten steps instead of fifty
    assert Cost(native=6, full=3, forecast=3).speedup(57) == pytest.approx(2.0)


def test_joint_speedup_weighs_samples_by_their_cost():
    fast, slow = Cost(10, full=2, forecast=8), Cost(10, full=10)
    assert quality.joint_speedup([fast, slow], 57) == pytest.approx(20 / 12)


def test_a_curve_is_read_off_between_the_settings_that_no_other_beats():
    every = [Point(s, m, m - 1, m - 2) for s, m in ((1.0, 50.0), (2.0, 40.0), (3.0, 20.0), (4.0, 30.0))]
    curve = frontier(every)
    assert curve == [every[0], every[1], every[3]]
    assert at(curve, 2.0) == every[1]
    middle = 2 * math.sqrt(2)
    assert at(curve, middle) == at_least(curve, middle) == pytest.approx((middle, 35.0, 34.0, 33.0))
    assert at(curve, 0.5) is None
    assert at_least(curve, 0.5) == at_least(curve[:1], 1.0) == every[0]
    assert at(curve, 4.5) is at_least(curve, 4.5) is at_least(curve[:1], 1.5) is at_least([], 2.0) is None
    # Thresholds may share a speed, where a cap decides: the first of them is taken.
    assert at([every[1], Point(2.0, 39.0, 38.0, 37.0), every[3]], 2.0) == every[1]


# --- Rivals without ComfyUI's models ----------------------------------------------------------------------------------


@pytest.fixture
def forecasting(comfy):
    from methods import forecasting

    return forecasting


def every(interval: int):
    """TaylorSeer's rule."""
    from methods.taylor import FixedInterval

    return FixedInterval(interval)


def released(*args, **kwargs):
    from methods.released import ReleasedSpeCa

    return ReleasedSpeCa(*args, **kwargs)


def schedule(rule, n: int) -> str:
    return "".join({"full": "F", "forecast": "-", "checked": "c"}[rule.decide(i, n)] for i in range(n))


def test_fixed_interval_computes_three_calls_and_then_every_nth(forecasting):
    assert schedule(every(3), 12) == "FFF--F--F--F"
    assert schedule(every(1), 5) == "FFFFF"
    fulls = [schedule(every(n), 50).count("F") for n in (3, 4, 6)]
    assert fulls == [18, 14, 10]


@pytest.mark.parametrize(
    ("longest", "errors", "expected"),
    [
        # Full, one free forecast, full again while still in the warm-up. Then two free forecasts, checks while errors
        # are under the threshold of 1; the error of 2 makes the *next* call full.
        (10, [0.5, 2.0, 0.5, 0.5, 0.5, 0.5], "F-F--ccF--cccc"),
        (4, [0.5] * 6, "F-F--ccF--ccF-"),
    ],
)
def test_released_rule_lets_the_last_error_decide_about_the_next_call(forecasting, longest, errors, expected):
    rule = released(base=1.0, decay=1.0, shortest=2, longest=longest)
    calls, left = "", iter(errors)
    for i in range(len(expected)):
        decision = rule.decide(i, len(expected))
        calls += {"full": "F", "forecast": "-", "checked": "c"}[decision]
        if decision == "checked":
            rule.observe(next(left))
    assert calls == expected


def test_released_threshold_decays_to_a_floor(forecasting):
    rule = released(base=1.0, decay=0.01, shortest=1, longest=100, floor=0.1, first_full=1)
    assert rule.decide(0, 10) == "full"
    rule.decide(1, 10)
    rule.observe(0.2)
    assert rule.decide(2, 10) == "checked"  # 0.01 ** 0.2 = 0.40
    rule.observe(0.2)
    assert rule.decide(9, 10) == "full"  # the floor of 0.1


def test_taylor_factors_follow_a_line_exactly_and_delay_their_differences(forecasting):
    factors = forecasting.TaylorFactors(order=2, first_full=3)
    slope, start = torch.tensor([2.0, -1.0]), torch.tensor([5.0, 7.0])
    for call in (0, 1):
        factors.record(call, start + slope * call)
        assert len(factors.factors) == 1  # differences inside the warm-up are not kept
    factors.record(2, start + slope * 2)
    assert len(factors.factors) == 2
    assert torch.allclose(factors.forecast(6), start + slope * 6)
    factors.record(6, start + slope * 6)
    assert len(factors.factors) == 3
    assert torch.allclose(factors.factors[2], torch.zeros(2))
    assert torch.allclose(factors.forecast(9), start + slope * 9)


def test_taylor_factors_by_hand(forecasting):
    factors = forecasting.TaylorFactors(order=1, first_full=3)
    for call, value in ((0, 0.0), (1, 1.0), (2, 4.0), (5, 10.0)):
        factors.record(call, torch.tensor([value]))
    # The last gap: (10 - 4) / 3 = 2 a call.
    assert factors.forecast(7).item() == pytest.approx(14.0)
    assert factors.nbytes == 2 * 4


# --- Rivals in a real model -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(comfy):
    from measure.subjects import load

    return load("tiny_flux")


@pytest.fixture
def case(comfy):
    from measure.sampling import Case

    return Case(steps=8)


@pytest.mark.parametrize("level", ["last", "blocks", "modules"])
def test_rival_with_interval_one_computes_everything_and_changes_nothing(forecasting, tiny, case, level):
    from measure.sampling import batch_of, sample

    batch = batch_of(tiny, 2)
    patched, log = forecasting.attach(tiny.patcher, level, lambda: every(1), order=2)
    expected = sample(tiny.patcher, tiny, case, batch).latents
    assert torch.equal(sample(patched, tiny, case, batch).latents, expected)
    assert log.decisions == ["full"] * 8


@pytest.mark.parametrize("level", ["last", "blocks", "modules"])
def test_rival_forecasts_where_its_rule_says_so_and_leaves_the_model_as_it_was(forecasting, tiny, case, level):
    from measure.sampling import batch_of, sample

    batch = batch_of(tiny, 2)
    expected = sample(tiny.patcher, tiny, case, batch).latents
    patched, log = forecasting.attach(tiny.patcher, level, lambda: every(3), order=1)
    first = sample(patched, tiny, case, batch).latents
    assert log.decisions == ["full", "full", "full", "forecast", "forecast", "full", "forecast", "forecast"]
    assert not torch.equal(first, expected)
    assert torch.equal(sample(patched, tiny, case, batch).latents, first)
    assert torch.equal(sample(tiny.patcher, tiny, case, batch).latents, expected)
    assert not any("forward" in module.__dict__ for module in tiny.patcher.model.diffusion_model.modules())


def test_cache_holds_what_each_level_keeps(forecasting, tiny, case):
    from measure.sampling import batch_of, sample

    held = {}
    for level in ("last", "blocks", "modules"):
        patched, log = forecasting.attach(tiny.patcher, level, lambda: every(3), order=0)
        sample(patched, tiny, case, batch_of(tiny, 1))
        held[level] = log.cache_bytes
    token = 64 * 4  # width, bytes
    tokens = 16 + 7  # picture and text
    assert held["last"] == tokens * token
    # Two double blocks (picture and text apart, together all tokens) and four single ones.
    assert held["blocks"] == 6 * tokens * token
    # Double blocks keep attention and MLP each.
    assert held["modules"] == (2 * 2 + 4) * tokens * token


def test_checking_measures_the_last_block_and_does_not_change_the_answer(forecasting, tiny, case):
    from measure.sampling import batch_of, sample

    batch = batch_of(tiny, 1)

    def run(rule):
        patched, log = forecasting.attach(tiny.patcher, "modules", rule, order=1)
        return sample(patched, tiny, case, batch).latents, log

    # A threshold that no error reaches: checked calls are forecasts like the others.
    latents, log = run(lambda: released(1e9, 1.0, 2, 5))
    assert "checked" in log.decisions
    assert len(log.errors) == log.decisions.count("checked")
    assert all(math.isfinite(error) and error > 0 for error in log.errors)

    class Unchecked:
        first_full = 3

        def __init__(self) -> None:
            self.rule = released(1e9, 1.0, 2, 5)

        def decide(self, call, n_calls):
            return "full" if self.rule.decide(call, n_calls) == "full" else "forecast"

    assert torch.equal(run(Unchecked)[0], latents)


def test_dit_modules_add_up_to_the_block(forecasting, comfy):
    import comfy.ops

    from speca.dit.model import DiTBlock

    torch.manual_seed(0)
    block = DiTBlock(32, 4, 4.0, comfy.ops.disable_weight_init)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, c = torch.randn(2, 5, 32), torch.randn(2, 32)
    seen: dict[str, torch.Tensor] = {}
    for path in forecasting.MODULES["DiTBlock"].paths:
        block.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: seen.update({path: out}))
    with torch.no_grad():
        exact = block(x, c)
        again = forecasting.MODULES["DiTBlock"].add_up(block, [seen["attn"], seen["mlp"]], x, c)
    assert torch.allclose(exact, again, atol=1e-6)


@pytest.mark.parametrize("name", ["auraflow", "cosmos_predict2", "cosmos1", "pixart_sigma", "wan21"])
def test_modules_add_up_to_their_block(forecasting, comfy, name):
    """Every block of a tiny model, within a run of it, and what its modules' outputs add up to."""
    from measure.sampling import Case, batch_of, sample
    from measure.subjects import load
    from methods.levels import as_tuple, blocks_of
    from speca.adapters import recognise

    subject, kinds = load(f"tiny_{name}"), set()

    def watch(block):
        modules, native, seen = forecasting.modules_of(block), block.forward, {}
        for path in modules.paths:
            block.get_submodule(path).register_forward_hook(
                lambda module, given, out, path=path: seen.update({path: [t.clone() for t in as_tuple(out)]})
            )

        def compared(*args, **kwargs):
            own = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]  # blocks work in place
            exact = native(*args, **kwargs)
            again = modules.add_up(block, [t for path in modules.paths for t in seen[path]], *own, **kwargs)
            for one, other in zip(as_tuple(exact), as_tuple(again), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
            kinds.add(type(block))
            return exact

        block.forward = compared

    blocks = [block for _, block in blocks_of(recognise(subject.patcher.model.diffusion_model))]
    for block in blocks:
        watch(block)
    sample(subject.patcher, subject, Case(2), batch_of(subject, 1))
    assert kinds == {type(block) for block in blocks}


# --- Methods and harness ----------------------------------------------------------------------------------------------


def test_core_caches_are_counted_and_do_not_write_into_the_samplers_latent(tiny, case):
    from measure.sampling import batch_of
    from methods.core_caches import CoreCache
    from methods.fewer_steps import Uncached

    batch = batch_of(tiny, 1)
    reference = Uncached().run(tiny, case, batch)
    assert reference.costs == [Cost(8, 8)]
    for node in ("EasyCache", "LazyCache"):
        nothing = CoreCache(node, 0.0).run(tiny, case, batch, 8)
        assert nothing.costs[0].full == pytest.approx(8)
        assert torch.equal(nothing.latents, reference.latents)
        much = CoreCache(node, 3.0).run(tiny, case, batch, 8)
        assert 0 < much.costs[0].full < 8
        assert much.costs[0].full + much.costs[0].forecast == pytest.approx(8)


def test_guidance_and_two_calls_a_step_are_counted_as_the_sampler_asks(tiny):
    from measure.sampling import Case, batch_of
    from methods.core_caches import CoreCache
    from methods.fewer_steps import Uncached
    from methods.speca import SpeCa
    from methods.taylor import Taylor

    case = Case(steps=6, sampler="heun", cfg=3.0)
    batch = batch_of(tiny, 2)
    native = Uncached().run(tiny, case, batch).costs[0].native
    assert native == 11  # heun's last step is an euler step
    for setting in (Taylor("last", 1, 3), SpeCa((("threshold", 0.5),)), CoreCache("EasyCache", 0.0)):
        for cost in setting.run(tiny, case, batch, native).costs:
            assert cost.asked == pytest.approx(11)


def test_speca_costs_are_per_sample(tiny, case):
    from measure.sampling import batch_of
    from methods.speca import SpeCa

    nothing = SpeCa((("threshold", 0.0),)).run(tiny, case, batch_of(tiny, 2), 8)
    assert nothing.costs == [Cost(8, 8.0)] * 2
    everything = SpeCa((("threshold", 1e6), ("max_consecutive", 100))).run(tiny, case, batch_of(tiny, 2), 8)
    # The last call is not trusted, nor two in a row.
    assert everything.costs == [Cost(8, 1.0, 4.0, forecast=3.0)] * 2


def test_a_sample_is_the_same_alone_and_in_a_batch(tiny, case):
    from measure.sampling import batch_of
    from methods.base import run_setting
    from methods.fewer_steps import Uncached

    batch = batch_of(tiny, 3)
    together = Uncached().run(tiny, case, batch).latents
    alone = run_setting(Uncached(one_by_one=True), tiny, case, batch, 8).latents
    assert torch.allclose(together, alone, atol=1e-4)


def test_seconds_alone_can_be_measured_again(tiny, tmp_path, monkeypatch):
    import bench
    from measure.sampling import Case

    table = bench.Table(tmp_path / "benchmark.csv")
    cell = bench.Cell("tiny_flux", Case(steps=6), thorough=True)
    methods = ["fewer_steps", "taylor_last"]
    bench.measure(tiny, cell, bench.settings_of(methods, True), samples=2, table=table)
    bench.time_cell(tiny, cell, methods, [], samples=2, rounds=1, table=table)
    before = [dict(row) for row in table.rows]
    monkeypatch.setattr(bench, "time_settings", lambda subject, case, settings, *_: {s: (1.0, 2.0) for s in settings})
    bench.time_cell(tiny, cell, methods, ["taylor_last"], samples=2, rounds=1, table=table)
    for was, row in zip(before, bench.Table(tmp_path / "benchmark.csv").rows, strict=True):
        timed = {"seconds": "1", "native_seconds": "2", "measured_speedup": "2"}
        assert row == (was | timed if row["method"] == "taylor_last" else was)


def test_harness_measures_resumes_and_reports(tiny, tmp_path):
    import bench
    from measure.sampling import Case
    from tables import summary

    table = bench.Table(tmp_path / "benchmark.csv")
    cell = bench.Cell("tiny_flux", Case(steps=6), thorough=True)
    methods = ["fewer_steps", "taylor_last", "speca"]
    bench.measure(tiny, cell, bench.settings_of(methods[:2], True), samples=2, table=table)
    bench.time_cell(tiny, cell, methods[:1], [], samples=2, rounds=1, table=table)
    n_rows = len(table.rows)
    again = bench.Table(tmp_path / "benchmark.csv")
    bench.measure(tiny, cell, bench.settings_of(methods, True), samples=2, table=again)
    added = again.rows[n_rows:]
    assert {row["method"] for row in added} == {"speca"}
    with (tmp_path / "benchmark.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == again.rows
    four = next(row for row in rows if row["label"] == "4 steps")
    assert float(four["speedup"]) == pytest.approx(6 / 4)
    assert float(four["measured_speedup"]) > 0
    assert {row["method"] for row in rows if row["seconds"]} == {"fewer_steps"}
    assert float(four["native_blocks"]) == 6 * 6
    text = summary.write(rows, tmp_path)
    assert "tiny_flux, 6 steps" in text
    assert "SpeCa above the best rival" in text
    assert (tmp_path / "summary.json").is_file()


def test_measuring_again_forgets_only_what_was_named(tmp_path):
    import bench

    table = bench.Table(tmp_path / "benchmark.csv")
    for method, model in (("speca", "flux"), ("speca", "dit"), ("fewer_steps", "flux")):
        table.append({"method": method, "model": model, "family": method, "steps": 50})
    table.keep(lambda row: (row["method"], row["model"]) != ("speca", "flux"))
    kept = [(row["method"], row["model"]) for row in bench.Table(tmp_path / "benchmark.csv").rows]
    assert kept == [("speca", "dit"), ("fewer_steps", "flux")]


def test_wall_clock_is_compared_at_equal_measured_speed():
    """SpeCa has 50 dB at 2x and 40 at 4x; Taylor 44 at 2x; what is not timed does not count."""
    from tables import summary

    def row(method, measured, psnr):
        case = {"model": "flux", "depth": "57", "steps": "28", "sampler": "euler", "scheduler": "simple", "cfg": "1"}
        return {**case, "method": method, "speedup": "3", "measured_speedup": measured, "psnr_mean": psnr}

    rows = [
        row("speca", "2", "50"),
        row("speca", "4", "40"),
        row("taylor_last", "2", "44"),
        row("fewer_steps", "", "60"),
    ]
    line = summary.wall_clock(summary.cells_of(rows)).splitlines()[-1]
    last_block = "Taylor, last block's features"
    assert line.startswith(f"| FLUX | 28 | 50.0 (+6.0, {last_block}) | 50.0 (+6.0, {last_block}) | 46.8 (alone) | ")


def test_where_a_rival_is_ahead_is_said():
    """SpeCa falls from 50 dB at 2x to 40 at 4x, a straight line in log speed, and Taylor has 45 dB all along: they meet
    at 2 sqrt(2)."""
    from tables import summary

    def row(method, speed, psnr):
        case = {"model": "dit", "depth": "28", "steps": "28", "sampler": "euler", "scheduler": "simple", "cfg": "1"}
        return {**case, "method": method, "speedup": speed, "psnr_mean": psnr}

    rows = [
        row("speca", "2", "50"),
        row("speca", "4", "40"),
        row("taylor_last", "2", "45"),
        row("taylor_last", "4", "45"),
    ]
    line = summary.surpassed(summary.cells_of(rows)).splitlines()[-1]
    assert line == "| DiT | 28 | Taylor, last block's features | 2.9x to 4x (up to 5.0 dB) |"
    line = summary.surpassed(summary.cells_of(rows[:2])).splitlines()[-1]
    assert "none" in line


def test_figures_name_the_commit_that_was_loaded(comfy, monkeypatch):
    """Whatever the checkout is at by the time they are written."""
    import subprocess

    from measure import environment

    loaded = environment.versions()["speca"]
    monkeypatch.setattr(subprocess, "run", None)
    assert environment.versions()["speca"] == loaded


# --- What an error costs, hardware ------------------------------------------------------------------------------------


def test_what_one_wrong_call_costs_is_measured_call_by_call(tiny):
    """Of both kinds, from the first call on; a step ends where the next call begins, the last one at 0."""
    from measure.sampling import Case
    from studies import sensitivity

    by_kind = sensitivity.costs(tiny, Case(6), n_samples=2)
    assert set(by_kind) == {"moving", "smooth"}
    for measured in by_kind.values():
        assert [cost.call for cost in measured] == [0, 1, 2, 3, 4, 5]
        assert all(cost.final > 0 for cost in measured)
        assert [cost.step for cost in measured[:-1]] == [
            pytest.approx(a.sigma - b.sigma) for a, b in itertools.pairwise(measured)
        ]
        assert measured[-1].step == measured[-1].sigma
    assert [c.final for c in by_kind["moving"]] != [c.final for c in by_kind["smooth"]]


def test_the_error_of_one_call_is_as_long_as_is_said(tiny):
    """At the last call, whose output goes straight into the picture: final error = error * step / sigma * gain."""
    from measure.sampling import Case
    from studies import sensitivity

    for measured in sensitivity.costs(tiny, Case(4), n_samples=1).values():
        assert 0.2 * sensitivity.SIZE < measured[-1].final < 5 * sensitivity.SIZE


def test_what_pictures_say_of_a_run_is_told_beside_what_errors_cost(tiny):
    from measure.sampling import Case
    from studies import sensitivity

    assert sensitivity.shown(tiny, Case(6), n_samples=2) > 0


def test_picture_noise_has_more_of_what_is_coarse():
    from studies import sensitivity

    noise = sensitivity.picture_noise((2, 3, 32, 32), torch.Generator().manual_seed(0))
    power = torch.fft.fft2(noise).abs().square().mean(dim=(0, 1))
    assert power[0, 1] > 10 * power[0, 8] > 0


def test_costs_that_follow_the_formula_do_not_scatter(tiny):
    from speca.path import SamplingPath
    from studies import sensitivity

    sigmas = [0.9, 0.7, 0.5, 0.3, 0.0]
    path = SamplingPath(tiny.patcher.model.model_sampling, sigmas)
    followed = [
        sensitivity.Cost(i, a, a - b, final=5.0 * path.level(a).final_error(a - b, 3.0))
        for i, (a, b) in enumerate(itertools.pairwise(sigmas))
    ]
    assert sensitivity.scatter(tiny, followed, 3.0) == pytest.approx(0.0, abs=1e-9)
    assert sensitivity.scatter(tiny, followed, 1.0) > 0.1


def test_gpu_speedup_follows_from_costs():
    from card import gpu

    assert gpu.speedup(0.8, 0.0) == pytest.approx(5.0)
    assert gpu.speedup(0.8, 0.1) == pytest.approx(1 / 0.28)
    assert gpu.speedup(0.5, 0.1, rejected=0.2, rejection_overhead=0.1) == pytest.approx(1 / 0.57)


def test_gpu_table_shows_each_network_once():
    from card import gpu

    def result(*networks):
        return {"device": "a card", "networks": networks}

    measured = {
        "name": "a", "skipped": None, "native_ms": 200.0, "last_block_ms": 8.0, "accepted_ms": 10.0, "full_ms": 202.0,
        "rejected_ms": 214.0, "cache_bytes": 90_000_000,
        "derived": {"verification_share": 0.018, "speedup_at_acceptance": {"0.8": 4.17}},
    }  # fmt: skip
    lines = gpu.table([result(measured, {"name": "b", "skipped": "no time was left"}), result(measured)]).split("\n")
    assert lines[2:] == ["| a | a card | 200.0 | 4.0% | 5.0% | - | 101.0% | 107.0% | 1.8% | 0.090 | 4.17x |"]


def test_gpu_script_runs_through_on_tiny_networks(comfy):
    import time

    from card import gpu

    for network in gpu.networks(tiny=True):
        figures = gpu.measure(network, torch.float32, torch.device("cpu"), time.perf_counter() + 60)
        assert figures.skipped is None
        assert figures.calls["accepted"] > 0
        assert figures.calls["rejected"] > 0
        assert figures.cache_bytes > 0
        assert figures.derived["accepted_share"] > 0
        assert 0 < figures.last_block_ms < figures.native_ms
        assert set(figures.parts_ms) == {"forecast", "forecast_output", "compare", "block"}


def test_honesty_counts_how_often_the_true_error_is_larger():
    from studies import honesty

    told = honesty.told([(0.1, 0.05), (0.1, 0.15), (0.1, 0.25), (0.1, 0.35)])
    assert told["calls"] == 4
    assert told["median"] == pytest.approx(2.0)
    assert told["over"] == {"1": 0.75, "2": 0.5, "3": 0.25}
    none = honesty.told([])
    lines = honesty.table({"m": {"0.08": {"accepted": told, "trusted": none}, "0.2": {"trusted": told}}}).splitlines()
    assert lines[2:] == [
        "| m | 0.08 | accepted | 4 | 2.00 | 75% | 50% | 25% |",
        "| m | 0.2 | trusted | 4 | 2.00 | 75% | 50% | 25% |",
    ]


def test_honesty_sees_the_true_error_of_every_call_that_was_forecast(tiny):
    from measure.sampling import Case, batch_of
    from studies import honesty

    found = honesty.forecast(tiny, Case(8), batch_of(tiny, 2), threshold=10.0)
    assert all(found[kind] for kind in honesty.KINDS)
    assert all(judged >= 0 and true > 0 for pairs in found.values() for judged, true in pairs)


def test_samplers_are_held_against_fewer_steps_at_their_speed():
    from measure.curve import Point
    from studies import samplers

    ours, fewer = [Point(2.0, 50.0, worst=40.0), Point(4.0, 30.0)], [Point(1.0, 100.0), Point(2.0, 20.0)]
    assert samplers.cell({"speca": ours, "fewer": fewer}) == "50.0 / 40.0 (+30.0); -"


def test_samplers_are_compared_by_calls_where_a_step_takes_two(tiny, monkeypatch):
    from measure.sampling import Case, batch_of
    from studies import samplers

    monkeypatch.setattr(samplers, "STEP_COUNTS", (8, 6))
    monkeypatch.setattr(samplers, "THRESHOLDS", (0.1, 2.0))
    curves = samplers.compare(tiny, Case(12, "heun"), batch_of(tiny, 1))
    assert [p.speed for p in curves["fewer"]] == pytest.approx([23 / 15, 23 / 11])  # the last step takes one
    assert curves["speca"][-1].speed > 1.5


def test_ablation_reads_quality_off_between_thresholds():
    from studies import ablation

    whole = [(6.0, 40.0, 30.0), (1.5, 60.0, 50.0)]
    less = [(1.5, 58.0, 50.0), (3.0, 40.0, 20.0)]
    found = ablation.differences(whole, less)
    assert found[ablation.SPEEDS.index(3.0)] == pytest.approx((-10.0, -20.0))
    assert found[ablation.SPEEDS.index(4.0)] is None
    lines = ablation.table({"growth": {"one": found, "two": []}}, lambda part: part).splitlines()
    assert lines[0] == "| without | one | two | all, mean | all, worst samples |"
    assert lines[2].startswith("| growth | -")
    assert " - |" in lines[2]


def test_ablation_takes_each_part_where_it_acts():
    from studies import ablation

    euler, noisy = ablation.parts_for("euler"), ablation.parts_for("euler_ancestral")
    assert sorted([*euler, *noisy]) == sorted(ablation._parts())
    assert "corrector" in euler
    assert "spectrum" in noisy


def test_ablation_switches_each_part_off_and_on_again():
    from importlib import import_module

    from studies import ablation

    def found(name):
        for end in range(name.count("."), 0, -1):
            head, tail = name.split(".")[:end], name.split(".")[end:]
            try:
                value = import_module(".".join(head))
            except ImportError:
                continue
            for each in tail:
                value = vars(value)[each] if each in vars(value) else getattr(value, each)
            return value
        raise AssertionError(name)

    for part, (_, replaced) in ablation._parts().items():
        for name, _ in replaced:
            before = found(name)
            with ablation.without(part):
                assert found(name) is not before
            assert found(name) is before
