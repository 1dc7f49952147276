"""Today's rivals, checked by hand where that can be done, and once through on tiny models."""

from __future__ import annotations

import itertools
import math
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from measure.quality import Cost

pytestmark = pytest.mark.comfy

# --- Plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_has_as_many_calls_as_its_speed_allows():
    from methods.plans import calls_for

    assert calls_for(5.0, 50) == 10
    # 8 full calls and 42 of one block of 28: 50 / (8 + 42 / 28) = 5.3; 9 full ones would be 4.8.
    assert calls_for(5.3, 50, depth=28) == 8
    assert calls_for(1.0, 28, depth=28) == 28


@pytest.mark.parametrize(("n", "k"), [(50, 10), (28, 9), (28, 5), (20, 3), (11, 11), (4, 3)])
def test_plans_begin_with_two_calls_and_end_where_they_should(n, k):
    from methods.plans import dense_early, even

    for plan, end in ((even(n, k), n - 1), (dense_early(n, k, 1.3), n - 2), (dense_early(n, k, 1.6), n - 2)):
        assert len(plan) == k
        assert list(plan) == sorted(set(plan))
        assert plan[:2] == (0, 1)
        assert plan[-1] == (n - 1 if k == n else end)


def test_plans_by_hand():
    from methods.plans import dense_early, even, fixed_interval

    assert even(11, 5) == (0, 1, 4, 7, 10)
    assert dense_early(12, 5, 2.0) == (0, 1, 2, 6, 10)  # 10 (j / 4)^2 = 0, .6, 2.5, 5.6, 10
    assert fixed_interval(12, 4, 3) == (0, 1, 2, 6, 10)
    assert fixed_interval(12, 4, 3, last=True) == (0, 1, 2, 6, 10, 11)
    assert fixed_interval(5, 1, 3) == (0, 1, 2, 3, 4)


def test_gaps_grow_as_the_released_code_of_spectrum_makes_them():
    from methods.plans import growing_gaps, growing_gaps_of

    # Its README: 14 and 10 calls of 50.
    assert growing_gaps(50, 2.0, 0.75, 5) == (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46)
    assert growing_gaps(50, 2.0, 3.0, 5) == (0, 1, 2, 3, 4, 6, 11, 19, 30, 44)
    for n, k in itertools.product((50, 28, 20), (4, 6, 9)):
        plan = growing_gaps_of(n, k)
        gaps = [b - a for a, b in itertools.pairwise(plan)]
        assert len(plan) == k
        assert gaps == sorted(gaps)
    assert growing_gaps_of(9, 9) == tuple(range(9))


def test_taylors_rule_can_compute_the_last_call():
    from methods.taylor import FixedInterval

    def schedule(rule):
        return "".join("F" if rule.decide(call, 12) == "full" else "-" for call in range(12))

    assert schedule(FixedInterval(4)) == "FFF---F---F-"
    assert schedule(FixedInterval(4, last=True)) == "FFF---F---FF"


# --- Levels and memories ----------------------------------------------------------------------------------------------


def echo(level, log):
    """A run that computes every call, and then again from what the level kept of it."""
    from methods.attachment import NetworkRun

    class Echo(NetworkRun):
        def forward(self, anatomy, native, *args, **kwargs):
            kept = {}
            with ExitStack() as stack:
                level.capture(anatomy, kept, stack)
                output = native(*args, **kwargs)
            exact = output.clone()
            with ExitStack() as stack:
                level.replay(anatomy, lambda name: kept[name].clone(), stack)
                again = native(*args, **kwargs)
            log.errors.append(float((again - exact).abs().max() / exact.abs().max()))
            return exact

    return Echo()


ZOO_ARCHITECTURES = (
    "flux",
    "hunyuan_video",
    "wan21",
    "qwen_image",
    "lumina2",
    "cosmos1",
    "pixart_sigma",
    "hunyuan_dit",
)


@pytest.mark.parametrize("name", ["last", "last input", "stack", "blocks", "modules"])
@pytest.mark.parametrize("architecture", ZOO_ARCHITECTURES)
def test_a_call_from_what_a_level_kept_of_it_is_that_call(comfy, architecture, name):
    import tiny_models
    from methods.attachment import attach_run
    from methods.forecasting import LEVELS

    tiny = tiny_models.build(architecture)
    patched, log = attach_run(tiny.model_patcher, lambda sigmas, log: echo(LEVELS[name], log))
    expected = tiny_models.ksample(*tiny, steps=2)
    assert torch.equal(tiny_models.ksample(*tiny._replace(model_patcher=patched), steps=2), expected)
    assert log.errors
    assert max(log.errors) < 1e-5
    assert not any("forward" in module.__dict__ for module in tiny.model_patcher.model.diffusion_model.modules())


def test_a_combined_memory_keeps_the_newer_of_two_at_one_time():
    from methods.forecasting import Combined

    memory = Combined(lambda times, at: [at] * len(times), depth=2)
    for at, value in ((0.0, 1.0), (1.0, 2.0), (1.0, 3.0)):
        memory.record(at, torch.tensor([value]))
    assert memory.times == [0.0, 1.0]
    assert memory.forecast(2.0).item() == 2 * (1 + 3)
    memory.record(2.0, torch.tensor([5.0]))
    assert memory.times == [1.0, 2.0]
    assert memory.nbytes == 8


# --- DPCache ----------------------------------------------------------------------------------------------------------


def features_of(function, n):
    return torch.stack([function(torch.tensor(float(call))) for call in range(n)])


def test_a_segment_over_features_on_a_line_costs_nothing():
    from methods.dpcache import cost_tensor

    costs = cost_tensor(features_of(lambda t: torch.stack([2 * t + 1, 3 - t]), 8))
    assert costs.shape == (8, 8, 9)
    for i, j, k in itertools.product(range(8), range(8), range(9)):
        computed_at_first = j < 2 and i <= j and k == j + 1
        assert math.isfinite(costs[i, j, k]) == (computed_at_first or (0 < i < j < k and j >= 2))
    # Behind the last call stands a point that is 0.2 of the mean of three: 2 calls away of 2 and of 1 a call.
    assert costs[2, 3, 7] == pytest.approx(0.0, abs=1e-5)
    assert costs[2, 3, 8] == pytest.approx(0.2 * 2 * (2 + 1) / 2, abs=1e-5)


def test_a_segments_cost_by_hand():
    from methods.dpcache import cost_tensor

    costs = cost_tensor(features_of(lambda t: t[None] ** 2, 7))
    # From calls 1, 2 and 4: 16, slope (16 - 4) / 2 = 6, bend (6 - 3) / 2 = 1.5; 16 + 6 + .75 against 25, and at two
    # calls ahead 16 + 12 + 3 against 36.
    assert costs[2, 4, 5] == pytest.approx(25 - 22.75)
    assert costs[2, 4, 6] == pytest.approx(25 - 22.75 + 36 - 31)


def test_the_best_plan_is_that_of_all_that_there_are():
    from methods.dpcache import best_plan

    n = 8
    costs = torch.rand(n, n, n + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i, j, k in itertools.product(range(n), range(n), range(n + 1)):
        if not i < j < k:
            costs[i, j, k] = math.inf

    def cost(plan):
        segments = zip(plan, plan[1:], (*plan[2:], n), strict=False)
        return sum(float(costs[i, j, k]) for i, j, k in segments) - float(costs[0, 1, 2])

    for k in range(3, n + 1):
        every = [(0, 1, 2, *rest) for rest in itertools.combinations(range(3, n), k - 3)]
        assert best_plan(costs, k) == min(every, key=cost)
    with pytest.raises(ValueError, match="3 to 8"):
        best_plan(costs, 9)


# --- MeanCache --------------------------------------------------------------------------------------------------------


def test_average_velocity_is_carried_on_as_the_way_behind_it_tells():
    """dz/dt = 2 + 6 t, so z = 2 t + 3 t^2."""
    from methods.meancache import Way

    way = Way()
    for t in (1.0, 0.8):
        way.keep(torch.tensor([2 * t + 3 * t**2]), t, torch.tensor([2 + 6 * t]))
    here = torch.tensor([2 * 0.6 + 3 * 0.6**2])
    # Half the slope of the velocity is 3; it is carried on from the newest velocity, as the released code does.
    assert way.estimate(here, 0.6, 0.5, span=2).item() == pytest.approx((2 + 6 * 0.8) + (0.5 - 0.6) * 3, abs=1e-4)
    assert way.estimate(here, 0.6, 0.5, span=1).item() == pytest.approx(2 + 6 * 0.8)
    way.keep(here, 0.8, torch.tensor([7.0]))
    assert [moment.t for moment in way.past] == [1.0, 0.8]
    assert way.estimate(here, 0.6, 0.5, span=1).item() == 7.0


def test_edges_over_a_steady_velocity_cost_nothing_and_long_ones_over_a_changing_one_more():
    from methods.meancache import SPANS, edge_costs

    times = [1 - i / 8 for i in range(8)]
    at = torch.tensor(times)[:, None]
    steady = edge_costs(3 * at, torch.full_like(at, 3.0), times)
    assert steady.shape == (len(SPANS), 8, 8)
    assert float(steady[0, 0, 1:].max()) == pytest.approx(0.0, abs=1e-6)
    assert math.isinf(steady[3, 1, 5])  # four calls back from call 1 there is none
    # Euler steps along a velocity of 6 t, as a sampler takes them.
    velocities, z = 6 * at, [torch.zeros(1)]
    for i in range(7):
        z.append(z[-1] + (times[i + 1] - times[i]) * velocities[i])
    costs = edge_costs(torch.stack(z), velocities, times)
    assert float(costs[:, 2, 3].min()) == 0.0
    assert costs[0, 2, 4] < costs[0, 2, 6]
    # Plain reuse from call 2 to call 4: the second of two steps has 6/8 too much, 3/8 on the mean.
    assert costs[0, 2, 4] == pytest.approx(6 / 8 / 2, abs=1e-5)
    assert costs[1, 2, 6] < costs[0, 2, 6]  # and what the velocity has changed by makes it better


def test_the_cheapest_path_is_that_of_all_that_there_are_and_peaks_are_suppressed():
    from methods.meancache import cheapest_path

    n = 9
    costs = torch.rand(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    costs[torch.ones(n, n).tril().bool()] = math.inf
    for k in range(2, n + 1):
        every = [(0, *rest, n - 1) for rest in itertools.combinations(range(1, n - 1), k - 2)]
        assert cheapest_path(costs, k) == min(
            every, key=lambda path: sum(float(costs[a, b]) for a, b in itertools.pairwise(path))
        )
    # 0 + 5 is less than 3 + 3, but its peak is higher.
    peaks = torch.full((4, 4), math.inf, dtype=torch.float64)
    peaks[0, 1], peaks[1, 3], peaks[0, 2], peaks[2, 3] = 0.0, 5.0, 3.0, 3.0
    assert cheapest_path(peaks, 3) == (0, 1, 3)
    assert cheapest_path(peaks**5, 3) == (0, 2, 3)


def test_meancache_is_left_out_where_the_sampler_adds_noise():
    from measure.sampling import Case
    from methods.meancache import MeanCache

    assert MeanCache(2.0).fits(Case(20, "heun"))
    assert not MeanCache(2.0).fits(Case(20, "dpmpp_2m_sde"))
    assert not MeanCache(2.0).fits(Case(20, "euler_ancestral"))


# --- Spectrum and RACER -----------------------------------------------------------------------------------------------


def test_the_ridge_fit_is_exact_on_polynomials_of_its_degree_as_the_penalty_goes():
    from methods.spectrum import chebyshev

    times = [0.0, 2.0, 5.0, 8.0, 11.0, 14.0, 17.0]

    def polynomial(t):
        return 1 - 2 * t + 0.5 * t**2 - 0.1 * t**3 + 0.01 * t**4

    errors = []
    for penalty in (1e-2, 1e-4, 1e-6):
        weights = chebyshev(times, 20.0, n=20, penalty=penalty)
        value = sum(w * polynomial(t) for w, t in zip(weights, times, strict=True))
        errors.append(abs(value - polynomial(20.0)))
    assert errors[0] > 50 * errors[1] > 50**2 * errors[2]
    assert errors[2] < 1e-4 * polynomial(20.0)
    # The penalty is on the constant too, as in the released code: a constant comes out smaller.
    assert 0.9 < sum(chebyshev(times, 17.0, n=20)) < 1


def test_spectrums_mixture_is_a_straight_line_without_the_fit():
    from methods.spectrum import chebyshev, mixed

    times = [0.0, 1.0, 3.0]
    assert mixed(times, 5.0, 10, share=0.0) == pytest.approx([0.0, -1.0, 2.0])
    assert mixed(times, 5.0, 10, share=1.0) == pytest.approx(chebyshev(times, 5.0, 10))


def test_trust_falls_with_disagreement_and_with_reach():
    from methods.racer import Trust

    trust = Trust(decay=0.3, theta=0.25)
    assert trust.kappa(0.25, 1) == pytest.approx(0.5)
    assert trust.kappa(0.0, 1) == pytest.approx(1 / (1 + math.exp(-1)))
    assert trust.kappa(0.25, 3) == pytest.approx(0.5 * math.exp(-0.6))
    assert Trust().kappa(0.1, 5) == pytest.approx(1.0, abs=1e-4)


def test_a_forecast_that_is_not_trusted_is_the_newest_call():
    from methods.racer import Trust, Trusted

    def filled(trust):
        memory = Trusted(trust, 12)
        for call in (0, 1, 2, 4):
            memory.record(call, torch.tensor([float(call) ** 2, 1.0]))
        return memory

    assert torch.allclose(filled(Trust(theta=-10)).forecast(6), torch.tensor([16.0, 1.0]))
    away = filled(Trust()).forecast(6)[0]
    assert away > 20
    half = filled(Trust(theta=filled(Trust()).disagreement(6))).forecast(6)[0]
    assert half == pytest.approx((16 + float(away)) / 2, rel=1e-3)


def test_a_refresh_is_paid_back_by_the_next_call_that_was_scheduled():
    from methods.racer import Refreshing, Trust

    risks = {3: 0.1, 4: 0.9, 5: 0.1, 6: 0.1, 7: 0.1, 8: 0.9, 9: 0.9, 10: 0.9, 11: 0.9}

    class Told(Refreshing):
        def risk(self, call):
            return risks[call]

    rule = Told((0, 1, 2, 5, 9), Trust(limit=0.5), 12)
    rule.memory()
    full = [call for call in range(12) if rule.decide(call, 12) == "full"]
    # Call 4 in the place of 5, call 8 in that of 9; then nothing is left to pay with.
    assert full == [0, 1, 2, 4, 8]


def test_a_call_is_riskier_once_features_have_jumped_and_some_calls_are_over_the_limit():
    from methods.racer import limits, risks

    features = features_of(lambda t: torch.stack([t, 3 - t]), 20)
    features[12:] += 5
    plan = (0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18)
    found = dict(zip((3, 5, 7, 9, 11, 13, 15, 17, 19), risks(features, plan), strict=True))
    assert found[13] > found[11]
    none, some = limits(list(found.values()))
    assert math.isinf(none)
    assert sum(risk > some for risk in found.values()) == 1
    assert limits([0.1] * 3) == [math.inf, math.inf]  # 0.15 of three calls is none


def test_constants_are_those_that_serve_other_samples_best(tiny):
    from measure.quality import relative_error
    from measure.sampling import Case, sample
    from methods import calibration, racer
    from methods.fewer_steps import Uncached

    case, plan = Case(steps=12), (0, 1, 3, 7)
    chosen = racer.trust_for(tiny, case, plan)
    assert racer.trust_for(tiny, case, plan) is chosen

    def error(trust):
        patched, _ = racer.attached(tiny, 12, plan, trust)
        singles = calibration.others(tiny, racer.CALIBRATION_SAMPLES).singles()
        return sum(
            relative_error(sample(patched, tiny, case, s).latents, Uncached().run(tiny, case, s).latents)[0]
            for s in singles
        )

    assert error(chosen) <= error(racer.Trust()) * (1 + 1e-6)


# --- Exponential basis ------------------------------------------------------------------------------------------------


def exponentials(times, rate=0.9, turn=0.6):
    """(D, n): a falling, a rising and a turning part, along random directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor(times, dtype=torch.float64)
    parts = [rate**t, 1.05**t, 0.95**t * (turn * t).cos(), 0.95**t * (turn * t).sin()]
    return directions @ torch.stack(parts)


def test_the_exponential_basis_is_exact_on_a_sum_of_exponentials():
    from methods.exponential import Exponential, fitted

    ahead = exponentials([7.5])[:, 0]
    # Singular values under 1e-4 of the largest are dropped, and the others damped a little.
    assert torch.allclose(fitted(exponentials([0, 1, 2, 3, 4, 5]))(2.5), ahead, atol=1e-5)
    memory = Exponential()
    for call, row in zip((0, 3, 6, 9, 12, 15), exponentials([0, 1, 2, 3, 4, 5]).T, strict=True):
        memory.record(call, row[None].float())
    assert torch.allclose(memory.forecast(22.5)[0].double(), ahead, atol=1e-4)


def test_the_exponential_basis_looks_back_as_far_as_gaps_are_equal_and_has_taylors_line_before():
    from methods.exponential import Exponential

    memory = Exponential()
    for call, value in ((0, 0.0), (1, 1.0), (2, 4.0), (5, 10.0)):
        memory.record(call, torch.tensor([[value]]))
    assert memory.forecast(7).item() == pytest.approx(14.0)  # the last gap: 2 a call
    for call in (8, 11, 14):
        memory.record(call, torch.tensor([[2.0 ** (call / 3)]]))
    tail, gap = memory._equal_gaps()
    assert (len(tail), gap) == (5, 3)


def test_a_sample_is_forecast_by_itself():
    from methods.exponential import Exponential

    together, alone = Exponential(), Exponential()
    other = torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    for call, row in enumerate(exponentials([0, 1, 2, 3, 4, 5]).T.float()):
        together.record(call, torch.stack([row, other[call]]))
        alone.record(call, row[None])
    assert torch.allclose(together.forecast(7)[:1], alone.forecast(7), atol=1e-5)


# --- SeaCache ---------------------------------------------------------------------------------------------------------


def test_the_filter_passes_what_is_slow_and_stops_what_is_fast_while_there_is_noise():
    from methods.seacache import filtered, gain

    frequencies = torch.fft.fftfreq(16).abs()
    noisy = gain(16, a=0.1, b=0.9, beta=2.0)
    assert (noisy[frequencies.argsort()].diff() <= 1e-9).all()
    # By hand at the highest frequency, 1/2: S = 4, a S / (a^2 S + b^2).
    assert noisy[8].item() == pytest.approx(0.1 * 4 / (0.01 * 4 + 0.81), rel=1e-5)
    clean = gain(16, a=1.0, b=1e-6, beta=2.0)
    assert torch.allclose(clean, torch.ones(16), atol=1e-5)

    row = torch.arange(16)
    slow, fast = torch.cos(2 * math.pi * row / 16), (-1.0) ** row
    grid = (slow[:, None] + fast[:, None]).expand(16, 16)[None, ..., None]
    out = filtered(grid, a=0.1, b=0.9, beta=2.0)[0, :, 0, 0]
    kept_slow, kept_fast = float(out @ slow / (slow @ slow)), float(out @ fast / (fast @ fast))
    assert kept_slow / kept_fast == pytest.approx(float(noisy[1] / noisy[8]), rel=1e-3)
    assert kept_slow > 10 * kept_fast > 0
    assert torch.allclose(filtered(grid, a=1.0, b=1e-6, beta=2.0), grid, atol=1e-4)


def test_distances_add_up_to_the_threshold():
    from methods.seacache import Accumulated, threshold_for

    moved = [0.0, 0.2, 0.2, 0.2, 0.1, 0.5, 0.1, 0.1]

    def computed(threshold):
        rule = Accumulated(threshold)
        return [call for call, distance in enumerate(moved) if rule.computes(call, len(moved), distance)]

    assert computed(0.35) == [0, 2, 5, 7]
    assert computed(100.0) == [0, 7]
    assert computed(0.0) == list(range(8))
    for k in (2, 4, 8):
        assert len(computed(threshold_for([moved], k))) == k


def test_what_the_first_block_gives_its_attention(comfy):
    import comfy.ops
    from torch import nn

    from methods.seacache import modulated_input
    from speca.dit.model import DiTBlock, modulate

    torch.manual_seed(0)
    block = DiTBlock(32, 4, 4.0, comfy.ops.disable_weight_init)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    x, c = torch.randn(2, 5, 32), torch.randn(2, 32)
    with torch.no_grad():
        shift, scale = block.adaLN_modulation(c).chunk(6, dim=1)[:2]
        assert torch.equal(modulated_input(block, (x, c), {}), modulate(block.norm1(x), shift, scale))
    assert "forward" not in block.attn.__dict__
    with pytest.raises(ValueError, match="Linear"):
        modulated_input(nn.Linear(2, 2), (x,), {})


def test_tokens_are_laid_out_as_the_picture_is_and_text_is_left_out():
    from types import SimpleNamespace

    from methods.seacache import as_grid

    tokens = torch.arange(7 + 12.0).view(1, -1, 1)
    grid = as_grid(tokens, (8, 6), SimpleNamespace(patch_size=2))
    assert grid.shape == (1, 4, 3, 1)
    assert grid[0, 1, 2, 0] == 7 + 3 + 2
    clip = as_grid(torch.zeros(2, 24, 5), (2, 8, 6), SimpleNamespace(patch_size=(1, 2, 2)))
    assert clip.shape == (2, 2, 4, 3, 5)


# --- On models --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(comfy):
    from measure.subjects import load

    return load("tiny_flux")


@pytest.fixture(autouse=True)
def _few_trials(monkeypatch):
    """RACER tries constants by sampling."""
    from methods import racer

    monkeypatch.setattr(racer, "SHRINKAGES", ((0.0, 3.0), (0.1, 0.4)))


def at_speed(speed):
    """A setting of each method that is asked for a speed or an interval."""
    from methods.dpcache import DPCache
    from methods.exponential import ExponentialBasis
    from methods.meancache import MeanCache
    from methods.own_plan import OwnInterval, OwnPlan
    from methods.racer import Racer
    from methods.seacache import SeaCache
    from methods.spectrum import Spectrum
    from methods.taylor import Taylor

    interval = round(speed)
    return {
        "dpcache": DPCache(speed),
        "meancache": MeanCache(speed),
        "spectrum": Spectrum(speed),
        "seacache": SeaCache(speed),
        "racer": Racer(speed),
        "exponential": ExponentialBasis(interval),
        "own_interval": OwnInterval(interval),
        "own_even": OwnPlan(speed),
        "own_dense": OwnPlan(speed, 1.3),
        "taylor_end": Taylor("last", 2, interval, last=True),
    }


NAMES = (
    *("dpcache", "meancache", "spectrum", "seacache", "racer", "exponential"),
    *("own_interval", "own_even", "own_dense", "taylor_end"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_rival_that_computes_every_call_changes_nothing(tiny, name):
    from measure.sampling import Case, batch_of
    from methods.fewer_steps import Uncached

    case, batch = Case(steps=8), batch_of(tiny, 2)
    expected = Uncached().run(tiny, case, batch)
    run = at_speed(1.0)[name].run(tiny, case, batch, 8)
    assert torch.equal(run.latents, expected.latents)
    assert run.costs == [Cost(8, 8.0)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_rival_counts_its_calls_and_leaves_the_model_as_it_was(tiny, name):
    from measure.sampling import Case, batch_of
    from methods.base import run_setting
    from methods.fewer_steps import Uncached
    from methods.plans import fixed_interval

    case, batch = Case(steps=12), batch_of(tiny, 2)
    expected = Uncached().run(tiny, case, batch).latents
    setting = at_speed(3.0)[name]
    assert setting.fits(case)
    run = run_setting(setting, tiny, case, batch, 12)
    assert bool(torch.isfinite(run.latents).all())
    assert not torch.equal(run.latents, expected)
    assert run.cache_bytes > 0
    full = {
        "exponential": len(fixed_interval(12, 3, 3, last=True)),
        "own_interval": len(fixed_interval(12, 3, 1)),
        "taylor_end": len(fixed_interval(12, 3, 3, last=True)),
    }.get(name, 4)
    for cost in run.costs:
        assert cost.asked == pytest.approx(12)
        if name == "seacache":  # decides as it goes, by a threshold from other samples
            assert 2 <= cost.full < 12
        elif name.startswith("own_"):
            assert (cost.full, cost.verified, cost.forecast) == (full, 12 - full, 0)
        else:
            assert (cost.full, cost.verified, cost.forecast) == (full, 0, 12 - full)
    assert torch.equal(run_setting(setting, tiny, case, batch, 12).latents, run.latents)
    assert torch.equal(Uncached().run(tiny, case, batch).latents, expected)
    assert not any("forward" in module.__dict__ for module in tiny.patcher.model.diffusion_model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_a_rival_runs_with_guidance_and_two_calls_a_step(tiny, name, monkeypatch):
    """Once with both conditionings in one call, once one after the other: the same calls are computed."""
    import comfy.model_management

    from measure.sampling import Case, batch_of
    from methods import calibration, dpcache, meancache, racer, seacache
    from methods.base import run_setting

    case, batch = Case(steps=7, sampler="heun", cfg=3.0), batch_of(tiny, 2)
    setting = at_speed(2.0)[name]
    together = run_setting(setting, tiny, case, batch, 13)
    for kept in (calibration._TRACES, dpcache._COSTS, meancache._COSTS, racer._TRUSTS, seacache._DISTANCES):
        kept.clear()
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *args, **kwargs: 0)
    apart = run_setting(setting, tiny, case, batch, 13)
    for run in (together, apart):
        assert bool(torch.isfinite(run.latents).all())
        for cost in run.costs:
            assert cost.asked == pytest.approx(13)
            assert 3 <= cost.full < 13
    if name not in ("seacache", "racer"):  # these may decide otherwise for one conditioning than for the other
        assert [c.full for c in together.costs] == [c.full for c in apart.costs]


@pytest.mark.parametrize("architecture", ["hunyuan_video", "wan21", "qwen_image", "lumina2", "cosmos1", "pixart_sigma"])
def test_seacache_finds_its_way_in_the_zoos_other_architectures(comfy, architecture):
    import tiny_models
    from methods.attachment import attach_run
    from methods.seacache import _SeaRun

    tiny = tiny_models.build(architecture)
    expected = tiny_models.ksample(*tiny, steps=5)
    computed, moved = attach_run(tiny.model_patcher, lambda sigmas, log: _SeaRun(0.0, 5, [], log)), []
    assert torch.equal(tiny_models.ksample(*tiny._replace(model_patcher=computed[0]), steps=5), expected)
    patched, log = attach_run(tiny.model_patcher, lambda sigmas, log: _SeaRun(1e9, 5, moved, log))
    other = tiny_models.ksample(*tiny._replace(model_patcher=patched), steps=5)
    streams = len(log.decisions) // 5
    assert Counter(log.decisions) == {"full": 2 * streams, "forecast": 3 * streams}
    assert bool(torch.isfinite(other).all())
    assert not torch.equal(other, expected)
    assert all(distance > 0 for distance in moved[streams:])


def test_calibration_sees_other_samples_than_those_that_are_scored(tiny):
    from measure.sampling import Case, batch_of
    from methods import calibration
    from methods.fewer_steps import Uncached

    others = calibration.others(tiny)
    assert not set(others.seeds) & set(batch_of(tiny, 10_000).seeds)
    case = Case(steps=6)
    traced = calibration.trace(tiny, case)
    assert calibration.trace(tiny, case) is traced
    assert traced.n_calls == 6
    assert traced.features.shape[0] == traced.latents.shape[0] == 6
    # Euler's steps are taken along the velocities, to the latents that the uncached run ends in.
    times = torch.tensor([*traced.times, 0.0])[:, None]
    steps = traced.latents + (times[1:] - times[:-1]) * traced.velocities
    assert torch.allclose(steps[:-1], traced.latents[1:], atol=1e-4)
    uncached = Uncached().run(tiny, case, others).latents
    ended = tiny.patcher.model.process_latent_out(steps[-1].view_as(uncached))
    assert torch.allclose(ended, uncached, atol=1e-3)


def test_a_model_that_predicts_noise_is_a_flow_in_other_coordinates(comfy):
    """Euler's step along dx/dsigma, and along dz/dt, from sigma 3 to sigma 1.5."""
    import comfy.model_sampling

    from methods.calibration import Mixture

    class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    sampling = Sampling()
    x, denoised = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.25]])
    before, after = (Mixture.at(sampling, torch.tensor([sigma])) for sigma in (3.0, 1.5))
    z = before.latent(x)
    velocity = before.velocity(z, denoised)
    assert torch.allclose(before.denoised(z, velocity), denoised)
    stepped = x + (1.5 - 3.0) * (x - denoised) / 3.0
    assert torch.allclose(z + (after.t - before.t) * velocity, after.latent(stepped))

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flow = Mixture.at(Flow(), torch.tensor([0.25]))
    assert flow.t == pytest.approx(0.25)
    assert torch.allclose(flow.latent(x), x)


def test_every_setting_has_a_place_of_its_own_in_the_table():
    from measure.sampling import Case
    from methods import METHODS, OWN, RIVALS

    assert {"dpcache", "meancache", "spectrum", "seacache", "racer", "exponential"} <= set(RIVALS)
    assert set(OWN) == {"speca", "own_interval", "own_plan"}
    for short in (True, False):
        settings = [setting for method in METHODS.values() for setting in method.settings(short)]
        assert len({(setting.family, setting.label) for setting in settings}) == len(settings)
        assert len(set(settings)) == len(settings)
    for name, method in METHODS.items():
        short, full = set(method.settings(True)), set(method.settings(False))
        assert short <= full, name
        if name not in ("fewer_steps", "easycache", "lazycache", "released", "speca"):
            assert sum(setting.fits(Case(steps=28)) for setting in short) >= 4


@pytest.mark.comfy
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_what_is_put_right_brings_a_trained_model_nearer_to_its_uncached_picture(comfy, sampler, monkeypatch):
    """Lumina 2 of the zoo from 2x to 3x, with as many computed calls or fewer. Where these stand is luck at any one
    threshold, so the mean of three counts."""
    from measure.quality import psnr
    from measure.sampling import Case, batch_of, sample
    from measure.subjects import load
    from methods.speca import SpeCa

    subject = load("lumina-clipart")
    case, batch = Case(steps=28, sampler=sampler), batch_of(subject, 2)
    uncached = sample(subject.patcher, subject, case, batch).latents

    def run():
        computed, quality = 0, []
        for threshold in (0.07, 0.08, 0.12):
            made = SpeCa((("threshold", threshold), ("check_every", 1))).run(subject, case, batch, 28)
            computed += sum(cost.full + cost.rejected for cost in made.costs)
            quality += psnr(subject.picture(made.latents), subject.picture(uncached))
        return computed / len(quality), sum(quality) / len(quality)

    computed, nearer = run()
    monkeypatch.setattr("speca.corrector.Corrector.strayed", lambda *args: None)
    computed_without, farther = run()
    assert computed <= computed_without < 28 / 2
    assert nearer > farther + 1.0
