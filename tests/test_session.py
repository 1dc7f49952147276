"""Decisions on a network that can be computed by hand.

The fake network's output and features are the same number, a function of time, in every element. With a noise gain of
at most 1 every forecast repeats the last computed value, so the error of a call can be worked out on paper. The first
two calls are always computed.
"""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from speca.config import SpeCaConfig
from speca.events import RunHeader, RunRecord, Totals
from speca.history import Anchor, Latent
from speca.session import Call, Exact, ForecastImpossibleError, Session, summary_line

CPU = torch.device("cpu")


@dataclass
class FakeNetwork:
    """Row r is `value(time, r)`. On forecast features the last block returns `exact`, the true value, so the direct
    output forecast is what is found wrong."""

    time: float
    n_rows: int
    value: callable = lambda time, row: 1.0 + time
    splittable: bool = True
    device: torch.device = CPU
    full_rows: list = field(default_factory=list)
    speculated_rows: list = field(default_factory=list)
    refuse: str | None = None
    embedded: float | None = 0.0
    given: tuple | None = None

    def _values(self, rows):
        rows = range(self.n_rows) if rows is None else rows
        return torch.tensor([[self.value(self.time, row)] * 4 for row in rows])

    def full(self, rows, keep_features, keep_embedded=False):
        self.full_rows.append(rows)
        values = self._values(rows)
        embedded = None
        if keep_embedded and self.embedded is not None:
            embedded = (torch.full_like(values, self.embedded),)
        return Exact((values.clone(),) if keep_features else None, (values,), embedded)

    def speculate(self, features, rows, own_shares=()):
        if self.refuse:
            raise ForecastImpossibleError(self.refuse)
        self.given = (features, own_shares)
        self.speculated_rows.append(rows)
        return (self._values(rows),)


HEADER = RunHeader(
    settings={},
    model="Fake",
    architecture="fake",
    experimental=False,
    n_blocks=4,
    steps=10,
    sampler="euler",
    n_samples=1,
)


def run(config, times, n_samples=1, n_conds=1, listener=None, **network):
    """Outcomes per call and sample, the networks used, and the session."""
    session = Session(config, HEADER, listener)
    streams = tuple((cond, sample) for cond in range(n_conds) for sample in range(n_samples))
    networks = []
    for i, time in enumerate(times):
        bound = FakeNetwork(time, len(streams), **network)
        networks.append(bound)
        call = Call(time, time, i, i / len(times), n_samples, streams, tuple(range(n_conds)), kind="all")
        (output,) = session.evaluate(call, bound)
        assert torch.equal(output, bound._values(None))
    record = session.record()
    return [[row.outcome for row in call.rows] for call in record.calls], networks, session


REUSE = SpeCaConfig(
    threshold=0.25, order=1, noise_gain_limit=1.0, threshold_end_factor=1.0, accumulate_error=False, warmup_steps=2
)


def errors(session):
    return [call.rows[0].error for call in session.record().calls]


def test_per_step_rule_by_hand():
    """Outputs 9 to 14: repeating 10 is wrong by 1/11, 2/12, 3/13, and 4/14 = .286, which is over .25."""
    outcomes, networks, session = run(REUSE, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0])
    assert outcomes == [["full"]] * 2 + [["accepted"]] * 3 + [["rejected"]]
    assert errors(session) == pytest.approx([None, None, 1 / 11, 2 / 12, 3 / 13, 4 / 14])
    assert [len(n.full_rows) for n in networks] == [1, 1, 0, 0, 0, 1]


def test_accumulated_errors_by_hand():
    """1/11 = .091, which grows by a fifth; + 2/12 = .276 is over .25, so the fourth call is rejected; then the count
    starts anew from 12."""
    config = replace(REUSE, accumulate_error=True)
    outcomes, _, session = run(config, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0])
    assert outcomes == [["full"], ["full"], ["accepted"], ["rejected"], ["accepted"], ["accepted"]]
    assert errors(session) == pytest.approx([None, None, 1 / 11, 1.2 / 11 + 2 / 12, 1 / 13, 1.2 / 13 + 2 / 14])


def test_no_forecast_is_tried_whose_error_must_pass_the_threshold():
    """As above, then from 12: 1/13 = .077; that grown and 2/14 is .235; that grown is .282, and adding as much as last
    time makes it .425, over .25 before anything is run."""
    config = replace(REUSE, accumulate_error=True)
    outcomes, networks, session = run(config, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0])
    assert [each[0] for each in outcomes] == ["full", "full", "accepted", "rejected", "accepted", "accepted", "full"]
    row = session.record().calls[-1].rows[0]
    assert row.reason == "expected_over"
    assert row.limit == pytest.approx(1.2 * (1.2 / 13 + 2 / 14) + 2 / 14)
    assert networks[-1].speculated_rows == []


def test_the_first_forecast_that_is_too_wrong_is_tried_all_the_same():
    """1/11 = .091, grown and once more .2: over .19, but nothing has been thrown away yet that could be learnt from."""
    config = replace(REUSE, accumulate_error=True, threshold=0.19)
    outcomes, _, _ = run(config, [8.0, 9.0, 10.0, 11.0])
    assert outcomes[-1] == ["rejected"]


def test_a_rejected_call_becomes_an_anchor():
    _, _, session = run(replace(REUSE, threshold=0.1), [8.0, 9.0, 11.0, 11.5])
    assert errors(session)[3] == pytest.approx(0.5 / 12.5)


def test_a_forecast_that_repeats_an_anchor_is_still_checked_against_a_line():
    """Order 0 repeats the features; the output is forecast in a straight line, so that an error can be seen at all.
    Outputs 1, 2, then 4: the line says 3, wrong by 1/4; its copy of the last output would have been its own witness.
    The line reaches 1/3 beyond that copy."""
    config = replace(REUSE, order=0, noise_gain_limit=100.0)
    _, _, session = run(config, [0.0, 1.0, 2.0], value=lambda time, row: 2.0**time)
    assert errors(session)[2] == pytest.approx(math.sqrt(1 / 4 * 1 / 3))


def test_no_accepted_error_exceeds_its_threshold():
    config = SpeCaConfig(threshold=0.1, order=2, threshold_end_factor=3.0)
    _, _, session = run(config, [10 - 0.5 * i for i in range(20)], value=lambda t, row: 2 + math.sin(t))
    rows = [call.rows[0] for call in session.record().calls]
    assert {row.outcome for row in rows} == {"full", "accepted", "rejected"}
    assert all(row.error <= row.threshold for row in rows if row.outcome == "accepted")
    assert all(row.error > row.threshold for row in rows if row.outcome == "rejected")


def test_run_limit():
    config = replace(REUSE, threshold=1.0, max_consecutive=2)
    outcomes, _, session = run(config, [1.0 + i for i in range(8)])
    assert [o for (o,) in outcomes] == ["full", *["full", "accepted", "accepted"] * 2, "full"]
    assert [call.rows[0].reason for call in session.record().calls][4] == "run_limit"


def test_only_the_rejected_sample_is_recomputed_with_all_its_conditionings():
    """Four samples, cond and uncond: rows 0..7. Sample 2 jumps, so rows 2 and 6 are computed, and only they."""

    def value(time, row):
        return 10.0 if row % 4 != 2 else 10.0 * time

    outcomes, networks, _ = run(REUSE, [0.9, 1.0, 2.0], n_samples=4, n_conds=2, value=value)
    assert outcomes[2] == ["accepted", "accepted", "rejected", "accepted"]
    assert networks[1].full_rows == [None]
    assert networks[2].speculated_rows == [None]
    assert networks[2].full_rows == [[2, 6]]


def test_one_bad_conditioning_rejects_its_sample():
    def value(time, row):
        return 10.0 if row != 3 else 10.0 * time  # sample 1 under the second conditioning

    outcomes, networks, _ = run(REUSE, [0.9, 1.0, 2.0], n_samples=2, n_conds=2, value=value)
    assert outcomes[2] == ["accepted", "rejected"]
    assert networks[2].full_rows == [[1, 3]]


def test_samples_go_their_own_ways_afterwards():
    """Sample 1 is rejected at every call, sample 0 never: its run limit ends its forecasts alone."""

    def value(time, row):
        return 10.0 if row == 0 else 2.0**time

    config = replace(REUSE, max_consecutive=2)
    outcomes, networks, _ = run(config, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], n_samples=2, value=value)
    assert [o[0] for o in outcomes] == ["full", "full", "accepted", "accepted", "full", "accepted"]
    assert [o[1] for o in outcomes] == ["full", "full", "rejected", "rejected", "rejected", "rejected"]
    assert networks[4].speculated_rows == [[1]]
    assert networks[4].full_rows == [None]  # both samples, so the batch goes through as it came


def test_a_batch_that_cannot_be_taken_apart_is_computed_whole():
    def value(time, row):
        return 10.0 if row == 0 else 10.0 * time

    outcomes, networks, session = run(REUSE, [0.9, 1.0, 2.0], n_samples=2, value=value, splittable=False)
    assert outcomes[2] == ["full", "rejected"]
    assert networks[2].full_rows == [None]
    assert session.record().calls[2].rows[0].reason == "with_rejected"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_a_number_is_a_rejection(bad):
    class Broken(FakeNetwork):
        def speculate(self, features, rows, own_shares=()):
            return (torch.full((1, 4), bad),)

    session = Session(replace(REUSE, threshold=1e6), HEADER)
    for i, time in enumerate([0.5, 1.0, 2.0]):
        (output,) = session.evaluate(Call(time, time, i, 0.0, 1, ("s",)), Broken(time, 1))
        assert torch.isfinite(output).all()
    row = session.record().calls[2].rows[0]
    assert (row.outcome, row.reason) == ("rejected", "not_finite")
    assert "Infinity" not in str(session.record().to_json())


@pytest.mark.parametrize(("truth", "answer"), [("verified", 2.0), ("direct", 1.0), ("between", 1.25)])
def test_a_rejection_teaches_which_way_to_trust(truth, answer):
    """The direct forecast repeats 1; the last block says 2. The full call tells who was right, and the next accepted
    call, asked the same, answers so."""
    full = {"verified": 2.0, "direct": 1.0, "between": 1.25}[truth]

    class TwoWays(FakeNetwork):
        def speculate(self, features, rows, own_shares=()):
            return (torch.full((1, 4), 2.0),)

    session = Session(replace(REUSE, threshold=0.4), HEADER)
    values = [1.0, 1.0, full]
    for i, value in enumerate(values):
        session.evaluate(Call(float(i), 1.0, i, 0.0, 1, ("s",)), TwoWays(float(i), 1, value=lambda t, row, v=value: v))
    session._stream("s").history.record(Anchor(2.0, (torch.ones(1, 4),), (torch.ones(1, 4),)))
    session.config = replace(REUSE, threshold=1e6)
    (output,) = session.evaluate(Call(3.0, 1.0, 3, 0.0, 1, ("s",)), TwoWays(3.0, 1))
    assert [call.outcome for call in session.record().calls] == ["full", "full", "rejected", "accepted"]
    assert output.unique().tolist() == [answer]


def test_a_forecast_that_does_not_fit_is_computed_and_starts_anew():
    outcomes, _, session = run(REUSE, [8.0, 9.0, 10.0, 11.0, 12.0], refuse="shape_changed")
    assert outcomes == [["full"]] * 5
    reasons = [c.rows[0].reason for c in session.record().calls]
    assert reasons == ["warm_up", "warm_up", "shape_changed", "no_anchor", "shape_changed"]


def test_streams_of_separate_calls_do_not_mix():
    """Cond is constant at 10, uncond at 20, in calls of their own: each repeats its own value, without error."""
    session = Session(REUSE, HEADER)
    for step in range(4):
        for stream, level in (("cond", 10.0), ("uncond", 20.0)):
            network = FakeNetwork(float(step), 1, value=lambda time, row, level=level: level)
            (output,) = session.evaluate(Call(float(step), 1.0, step, 0.1, 1, (stream,)), network)
            assert output.unique().tolist() == [level]
    assert [c.rows[0].outcome for c in session.record().calls] == ["full"] * 4 + ["accepted"] * 4
    assert {c.rows[0].error for c in session.record().calls[4:]} == {0.0}


def test_threshold_zero_asks_for_no_features():
    class Plain(FakeNetwork):
        def full(self, rows, keep_features, keep_embedded=False):
            assert not keep_features
            return super().full(rows, keep_features, keep_embedded)

    session = Session(SpeCaConfig(threshold=0.0), HEADER)
    for i in range(5):
        session.evaluate(Call(float(i), 1.0, i, 0.5, 1, ("s",)), Plain(float(i), 1))
    assert session.totals().full == 5
    assert session.totals().cache_bytes == 0


class Clock:
    """Full calls take 10 s, everything else 1 s: advanced by the network itself."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_speedup_is_what_the_calls_would_have_cost_over_what_they_did():
    clock = Clock()

    class Timed(FakeNetwork):
        def full(self, rows, keep_features, keep_embedded=False):
            clock.now += 10
            return super().full(rows, keep_features, keep_embedded)

        def speculate(self, features, rows, own_shares=()):
            clock.now += 1
            return super().speculate(features, rows, own_shares)

    session = Session(replace(REUSE, threshold=0.15), HEADER, clock=clock)
    for i, time in enumerate([8.0, 9.0, 10.0, 11.0, 12.0]):
        session.evaluate(Call(time, 1.0, i, 0.0, 1, ("s",), kind="all"), Timed(time, 1))
        clock.now += 0.5  # the sampler's own work
    # full 10, full 10, accepted 1, rejected 11, accepted 1 and four pauses: 35 s, against 5 * 10 + 2
    totals = session.totals()
    assert (totals.full, totals.accepted, totals.rejected) == (2, 2, 1)
    assert totals.seconds == pytest.approx(35)
    assert totals.speedup == pytest.approx(52 / 35)


def test_the_log_line():
    _, _, session = run(REUSE, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0])
    line = summary_line(session.close("finished"))
    assert line.startswith("SpeCa: 6 calls: 2 full, 3 accepted, 1 rejected; ")
    assert line.endswith("x (measured); cache 6.4e-05 MB")


def test_the_log_line_of_a_large_model_as_the_readme_has_it():
    totals = Totals(calls=28, full=11, accepted=15, rejected=2, seconds=9.8, speedup=2.1, cache_bytes=170_000_000)
    line = summary_line(RunRecord(HEADER, "finished", (), totals))
    assert line == "SpeCa: 28 calls: 11 full, 15 accepted, 2 rejected; 2.1x (measured); cache 0.17 GB"


def test_the_log_line_says_why_nothing_was_skipped():
    _, _, session = run(replace(REUSE, threshold=1e-6), [0.5, 1.0, 2.0, 3.0])
    line = summary_line(session.close("interrupted"))
    assert "(interrupted); nothing skipped: 2x warm-up; 2x error 0.25 over 1e-06" in line


def test_closing_frees_the_anchors_and_keeps_the_record():
    _, _, session = run(REUSE, [9.0, 10.0])
    assert session.totals().cache_bytes == 2 * 2 * 4 * 4  # two anchors of features and output, 4 fp32 numbers each
    record = session.close("finished")
    assert not session._streams
    assert session.record() is record
    assert record.status == "finished"


class Listening:
    def __init__(self, broken=False):
        self.heard = []
        self.broken = broken

    def __getattr__(self, name):
        def hear(*args):
            self.heard.append((name, args))
            if self.broken:
                raise RuntimeError("the display is broken")

        return hear


def test_the_listener_hears_every_call_once_and_in_order():
    listener = Listening()
    _, _, session = run(REUSE, [9.0, 10.0, 11.0], listener=listener)
    session.close("finished")
    assert [name for name, _ in listener.heard] == ["run_started", *["call_made"] * 3, "run_ended"]
    assert [args[1].call for name, args in listener.heard if name == "call_made"] == [0, 1, 2]


def test_a_broken_listener_is_dropped_and_costs_nothing():
    listener = Listening(broken=True)
    outcomes, _, _ = run(REUSE, [9.0, 10.0, 11.0], listener=listener)
    assert len(outcomes) == 3
    assert len(listener.heard) == 1


@pytest.mark.parametrize(("weight", "outcome"), [(2.0, "accepted"), (3.0, "rejected")])
def test_an_error_counts_by_its_weight(weight, outcome):
    """1/11 is .091: twice that is within .25, three times is over it."""
    session = Session(REUSE, HEADER)
    for i, time in enumerate([8.0, 9.0, 10.0]):
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",), weight=weight), FakeNetwork(time, 1))
    row = session.record().calls[2].rows[0]
    assert row.error == pytest.approx(weight / 11)
    assert row.outcome == outcome


ONCE = replace(REUSE, warmup_steps=1)


def call_at(time, step, x=None, spread=1.0, renoised=False):
    latent = None if x is None else Latent(torch.full((1, 4), x), 0.5, spread)
    return Call(time, time, step, 0.0, 1, ("s",), latent=latent, renoised=renoised)


@pytest.mark.parametrize(("x", "error"), [(3.0, 1 / 5), (7.0, math.sqrt(1 / 5 * 2 / 4))])
def test_one_anchor_is_repeated_and_judged_by_the_last_block_and_the_latent(x, error):
    """An output of 4 is repeated where the last block says 5: wrong by 1/5. The latent moved from 3 to `x`, and half of
    that shows in the output: where it moved by 4, another guess is 6, and the repetition leaves out 2 of 4."""
    session = Session(replace(ONCE, threshold=1.0), HEADER)
    session.evaluate(call_at(2.0, 0, x=3.0), FakeNetwork(2.0, 1, lambda t, r: 4.0))
    (output,) = session.evaluate(call_at(1.0, 1, x=x), FakeNetwork(1.0, 1, lambda t, r: 5.0))
    row = session.record().calls[1].rows[0]
    assert row.outcome == "accepted"
    assert row.error == pytest.approx(error)
    assert torch.equal(output, torch.full((1, 4), 5.0))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (call_at(2.0, 0), call_at(1.0, 1)),
        (call_at(2.0, 0), call_at(1.0, 1, x=3.0)),
        (call_at(2.0, 0, x=3.0), call_at(2.0, 1, x=3.0)),
        (call_at(2.0, 0, x=3.0, spread=0.1), call_at(1.0, 1, x=3.0, spread=0.2)),
        (call_at(2.0, 0, x=3.0, renoised=True), call_at(1.0, 1, x=3.0, renoised=True)),
    ],
    ids=["no latent", "anchor without latent", "at one time", "mostly noise, not embedded", "renoised"],
)
def test_one_anchor_is_not_enough_where_a_repetition_cannot_be_judged(first, second):
    session = Session(replace(ONCE, threshold=1e9), HEADER)
    for call in (first, second, call_at(0.5, 2, x=3.0, renoised=second.renoised)):
        session.evaluate(call, FakeNetwork(call.time, 1, lambda t, r: 4.0, embedded=None))
    assert [call.rows[0].reason for call in session.record().calls][:2] == ["warm_up", "no_anchor"]


def test_where_the_output_is_mostly_noise_one_anchor_is_repeated_on_the_embedded_input():
    """Features of 4, of which 1 is the embedded input's. The output of 4 is half the latent, 3, and 2.5, which weighs
    twice as much at the second call's noise level: at a latent of 7 another 8.5 follows. The last block says 8, and
    four tenths of the answer is the direct forecast."""
    session = Session(replace(ONCE, threshold=1.0), HEADER)
    session.evaluate(call_at(2.0, 0, x=3.0, spread=0.1), FakeNetwork(2.0, 1, lambda t, r: 4.0, embedded=1.0))
    network = FakeNetwork(1.0, 1, lambda t, r: 8.0)
    (output,) = session.evaluate(call_at(1.0, 1, x=7.0, spread=0.2), network)
    ((features,), own_shares) = network.given
    assert torch.equal(features, torch.full((1, 4), 3.0))
    assert list(own_shares) == [1.0]
    assert errors(session)[1] == pytest.approx(math.sqrt(0.5 / 8 * 4.5 / 8.5))
    torch.testing.assert_close(output, torch.full((1, 4), 8.0 + 0.4 * 0.5))


@pytest.mark.parametrize(
    ("spread", "embedded", "forecast", "own_share"),
    [(0.1, 1.0, 7.6, 0.4), (0.1, None, 8.0, 0.0), (1.0, 1.0, 8.0, 0.0)],
    ids=["mostly noise", "mostly noise, not embedded", "flow"],
)
def test_with_a_second_anchor_features_hold_a_share_of_the_own_latent_where_it_is_mostly_noise(
    spread, embedded, forecast, own_share
):
    """Features of 8, of which 1 is the embedded input's: four tenths of that are left out, to be this call's own."""
    session = Session(replace(ONCE, threshold=0.05), HEADER)
    for i, value in enumerate((4.0, 8.0, 8.0)):  # the repetition is far off and computed
        network = FakeNetwork(2.0 - i, 1, lambda t, r, value=value: value, embedded=embedded)
        session.evaluate(call_at(2.0 - i, i, x=3.0, spread=spread), network)
    assert [call.outcome for call in session.record().calls][1] in ("full", "rejected")
    ((features,), own_shares) = network.given
    torch.testing.assert_close(features, torch.full((1, 4), forecast))
    assert list(own_shares) == [own_share]


def test_what_a_stream_keeps_is_settled_by_its_first_call():
    """At the end of a run the output is noise no longer; anchors of two kinds could not be combined."""
    session = Session(replace(ONCE, threshold=0.05), HEADER)
    for i, (value, spread) in enumerate([(4.0, 0.1), (8.0, 0.1), (8.0, 2.0)]):
        network = FakeNetwork(2.0 - i, 1, lambda t, r, value=value: value, embedded=1.0)
        session.evaluate(call_at(2.0 - i, i, x=3.0, spread=spread), network)
    assert list(network.given[1]) == [0.4]


def test_samples_with_one_anchor_and_with_two_share_a_batch():
    """Only the first sample's repetition is rejected, so only the second goes on with what its blocks added."""
    session = Session(replace(ONCE, threshold=0.05, accumulate_error=False), HEADER)
    streams = ("a", "b")
    for i in range(3):
        latent = Latent(torch.full((2, 4), 3.0), 0.5, 0.1)
        network = FakeNetwork(3.0 - i, 2, lambda t, r: 8.0 if r == 0 and t < 3 else 4.0, embedded=1.0)
        session.evaluate(Call(3.0 - i, 1.0, i, 0.0, 2, streams, latent=latent), network)
    ((features,), own_shares) = network.given
    assert list(own_shares) == [0.4, 1.0]
    torch.testing.assert_close(features[:, 0], torch.tensor([7.6, 3.0]))


def two_full_calls(config, latents, carry=0.5):
    """A session after full calls at times 1 and 2, both with the output 4 and with `latents`."""
    session = Session(config, HEADER)
    for i, (time, x) in enumerate(zip((1.0, 2.0), latents, strict=True)):
        latent = None if x is None else Latent(torch.full((1, 4), x), carry, 1.0)
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",), latent=latent), FakeNetwork(time, 1, lambda t, r: 4.0))
    return session


@pytest.mark.parametrize(("now", "error"), [(3.0, 0.0), (4.0, 0.5 / 4), (7.0, 2.0 / 4)])
def test_a_second_call_at_an_anchors_time_is_judged_by_what_the_latent_changed(now, error):
    """Features and output would repeat the anchor's own and look perfect. The latent moved from 3 to `now`, and half of
    that shows in the output: (now - 3) / 2 against an output of 4."""
    session = two_full_calls(REUSE, (3.0, 3.0))
    latent = Latent(torch.full((1, 4), now), 0.5, 1.0)
    session.evaluate(Call(2.0, 2.0, 2, 0.0, 1, ("s",), latent=latent), FakeNetwork(2.0, 1, lambda t, r: 4.0))
    row = session.record().calls[2].rows[0]
    assert row.error == pytest.approx(error)
    assert row.outcome == ("accepted" if error <= 0.25 else "rejected")


def test_a_second_call_at_an_anchors_time_without_a_latent_is_computed():
    session = two_full_calls(REUSE, (None, None))
    session.evaluate(Call(2.0, 2.0, 2, 0.0, 1, ("s",)), FakeNetwork(2.0, 1, lambda t, r: 4.0))
    row = session.record().calls[2].rows[0]
    assert (row.outcome, row.reason) == ("full", "no_anchor")


def test_or_judged_by_a_line_through_anchors_of_other_times():
    """Outputs 1, 2, 4 at times 0, 1, 2, and again at 2: the line through the first two says 3, and 3 is not 4. Nor
    is it what the newest anchor says, by 1/3."""
    session = Session(replace(REUSE, warmup_steps=3, order=2, noise_gain_limit=100.0), HEADER)
    for i, time in enumerate([0.0, 1.0, 2.0, 2.0]):
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",)), FakeNetwork(time, 1, lambda t, r: 2.0**t))
    assert session.record().calls[3].rows[0].error == pytest.approx(math.sqrt(1 / 4 * 1 / 3))


class Renoised(FakeNetwork):
    """Output 0.5 x + 2 rest; the last block knows it all."""

    def __init__(self, time, x, rest):
        super().__init__(time, 1, lambda t, row: float(0.5 * x + 2 * rest))
        self.asked_relative = []

    def full(self, rows, keep_features, keep_embedded=False):
        self.asked_relative.append(keep_embedded)
        return super().full(rows, keep_features, keep_embedded)

    def speculate(self, features, rows, own_shares=()):
        self.asked_relative.append(own_shares == [1.0])
        return super().speculate(features, rows, own_shares)


def test_fresh_noise_in_the_latent_is_no_forecast_error():
    """x jumps about; what the anchors forecast is the rest, and x is this call's own."""
    session = Session(SpeCaConfig(threshold=1e-5), HEADER)
    for i, (time, x) in enumerate(zip([5.0, 4.0, 3.0, 2.0, 1.0], [9.0, -7.0, 8.0, -6.0, 5.0], strict=True)):
        network = Renoised(time, x, rest=3.0)
        latent = Latent(torch.full((1, 4), x), 0.5, 2.0)
        call = Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True)
        (output,) = session.evaluate(call, network)
        torch.testing.assert_close(output, network._values(None))
        assert network.asked_relative == [True]
    assert [call.outcome for call in session.record().calls] == ["full"] * 2 + ["accepted"] * 3
    assert all(call.rows[0].error < 1e-6 for call in session.record().calls[2:])


def test_with_fresh_noise_a_sum_of_errors_does_not_grow():
    """Repeating a rest of 1 where it is 2 and then 3: the outputs are wrong by 2/4 and by 4/6."""
    config = replace(REUSE, threshold=10.0, accumulate_error=True)
    session = Session(config, HEADER)
    for i, (time, rest) in enumerate([(5.0, 1.0), (4.0, 1.0), (3.0, 2.0), (2.0, 3.0)]):
        latent = Latent(torch.zeros(1, 4), 0.5, 2.0)
        session.evaluate(
            Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True), Renoised(time, 0.0, rest=rest)
        )
    assert errors(session)[2:] == pytest.approx([2 / 4, 2 / 4 + 4 / 6])


def test_with_fresh_noise_no_error_is_expected():
    """Repeating a rest of 1 where it is 2 is wrong by 2/4, twice too much. Then 2 is repeated for 4, wrong by 4/8; once
    more would be too much again, but the rest is 2.5 next, and 1/5 is not."""
    config = replace(REUSE, threshold=0.9, accumulate_error=True)
    session = Session(config, HEADER)
    for i, rest in enumerate([1.0, 1.0, 2.0, 2.0, 4.0, 2.5]):
        time, latent = 9.0 - i, Latent(torch.zeros(1, 4), 0.5, 2.0)
        call = Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True)
        session.evaluate(call, Renoised(time, 0.0, rest=rest))
    outcomes = [call.outcome for call in session.record().calls]
    assert outcomes == ["full", "full", "accepted", "rejected", "accepted", "accepted"]
    assert errors(session)[2:] == pytest.approx([0.5, 1.0, 0.5, 0.7])


def test_with_fresh_noise_a_forecast_amplifies_less():
    """The rest is 1, 2 and then 3. A straight line would have a gain of 3; at 2, half the way is left:
    the output is 5 instead of 6, and reuse would say 4."""
    session = Session(SpeCaConfig(threshold=1.0, order=1, noise_gain_limit=100.0), HEADER)
    for i, time in enumerate([1.0, 2.0, 3.0]):
        latent = Latent(torch.zeros(1, 4), 0.5, 2.0)
        call = Call(time, time, i, 0.0, 1, ("s",), latent=latent, renoised=True)
        session.evaluate(call, Renoised(time, 0.0, rest=time))
    assert session.record().calls[2].rows[0].error == pytest.approx(math.sqrt(1 / 6 * 1 / 5))


def test_anchors_from_before_the_noise_are_dropped():
    """Their features hold the embedded input, later ones do not."""
    session = two_full_calls(REUSE, (3.0, 3.0))
    latent = Latent(torch.full((1, 4), 3.0), 0.5, 1.0)
    call = Call(3.0, 3.0, 2, 0.0, 1, ("s",), latent=latent, renoised=True)
    session.evaluate(call, FakeNetwork(3.0, 1, lambda t, r: 4.0))
    assert session.record().calls[2].rows[0].reason == "no_anchor"
    assert session._stream("s").history.times == [3.0]
