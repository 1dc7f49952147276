"""The way of a call, on a network that can be computed by hand (`fake_network`)."""

import math
from dataclasses import replace

import pytest
import torch

from fake_network import HEADER, REUSE, FakeNetwork, errors, run
from speca.call import Call
from speca.config import SpeCaConfig
from speca.schedule import Schedule
from speca.session import Session


def test_per_step_rule_by_hand():
    """Outputs 9 to 14: repeating 10 is wrong by 1/11, 2/12, 3/13, and 4/14 = .286, which is over .25."""
    outcomes, networks, session = run(REUSE, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0])
    assert outcomes == [["full"]] * 2 + [["accepted"]] * 3 + [["rejected"]]
    assert errors(session) == pytest.approx([None, None, 1 / 11, 2 / 12, 3 / 13, 4 / 14])
    assert [len(n.full_rows) for n in networks] == [1, 1, 0, 0, 0, 1]


def test_accumulated_errors_by_hand():
    """1/11 = .091, which grows by two fifths; + 2/12 = .294 is over .26, so the fourth call is rejected; then the count
    starts anew from 12."""
    config = replace(REUSE, accumulate_error=True, threshold=0.26)
    outcomes, _, session = run(config, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0])
    assert outcomes == [["full"], ["full"], ["accepted"], ["rejected"], ["accepted"], ["accepted"]]
    assert errors(session) == pytest.approx([None, None, 1 / 11, 1.4 / 11 + 2 / 12, 1 / 13, 1.4 / 13 + 2 / 14])


def test_a_rejected_call_becomes_an_anchor():
    _, _, session = run(replace(REUSE, threshold=0.1), [8.0, 9.0, 11.0, 11.5])
    assert errors(session)[3] == pytest.approx(0.5 / 12.5)


def test_no_accepted_error_exceeds_its_threshold():
    config = SpeCaConfig(threshold=0.1, order=2, threshold_end_factor=3.0, check_every=1)
    _, _, session = run(config, [10 - 0.5 * i for i in range(20)], value=lambda t, row: 2 + math.sin(t))
    rows = [call.rows[0] for call in session.tally.record().calls]
    assert {row.outcome for row in rows} == {"full", "accepted", "rejected"}
    assert all(row.error <= row.threshold for row in rows if row.outcome == "accepted")
    assert all(row.error > row.threshold for row in rows if row.outcome == "rejected")


def test_run_limit():
    config = replace(REUSE, threshold=1.0, max_consecutive=2)
    outcomes, _, session = run(config, [1.0 + i for i in range(8)])
    assert [o for (o,) in outcomes] == ["full", *["full", "accepted", "accepted"] * 2, "full"]
    assert [call.rows[0].reason for call in session.tally.record().calls][4] == "run_limit"


class Weighing(Schedule):
    """The same weight at every step: its `last`."""

    def weight(self, step, decided_at=None):
        return self.last


@pytest.mark.parametrize(("weight", "outcome"), [(2.0, "accepted"), (3.0, "rejected")])
def test_an_error_counts_by_its_weight(weight, outcome):
    """1/11 is .091: twice that is within .25, three times is over it."""
    session = Session(REUSE, HEADER)
    for i, time in enumerate([8.0, 9.0, 10.0]):
        schedule = Weighing(last=weight)
        session.evaluate(Call(time, time, i, 0.0, 1, ("s",), schedule=schedule), FakeNetwork(time, 1))
    row = session.tally.record().calls[2].rows[0]
    assert row.error == pytest.approx(weight / 11)
    assert row.outcome == outcome


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
    """Sample 1 is rejected at every call until its checks wait, sample 0 never: its run limit ends its forecasts."""

    def value(time, row):
        return 10.0 if row == 0 else 2.0**time

    config = replace(REUSE, max_consecutive=2)
    outcomes, networks, _ = run(config, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], n_samples=2, value=value)
    assert [o[0] for o in outcomes] == ["full", "full", "accepted", "accepted", "full", "accepted"]
    assert [o[1] for o in outcomes] == ["full", "full", "rejected", "rejected", "rejected", "full"]
    assert networks[4].speculated_rows == [[1]]
    assert networks[4].full_rows == [None]  # both samples, so the batch goes through as it came


def test_a_batch_that_cannot_be_taken_apart_is_computed_whole():
    def value(time, row):
        return 10.0 if row == 0 else 10.0 * time

    outcomes, networks, session = run(REUSE, [0.9, 1.0, 2.0], n_samples=2, value=value, splittable=False)
    assert outcomes[2] == ["full", "rejected"]
    assert networks[2].full_rows == [None]
    assert session.tally.record().calls[2].rows[0].reason == "with_rejected"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_a_number_is_a_rejection(bad):
    class Broken(FakeNetwork):
        def speculate(self, features, rows, on_embedded=()):
            return (torch.full((1, 4), bad),)

    session = Session(replace(REUSE, threshold=1e6), HEADER)
    for i, time in enumerate([0.5, 1.0, 2.0]):
        (output,) = session.evaluate(Call(time, time, i, 0.0, 1, ("s",)), Broken(time, 1))
        assert torch.isfinite(output).all()
    row = session.tally.record().calls[2].rows[0]
    assert (row.outcome, row.reason) == ("rejected", "not_finite")
    assert "Infinity" not in str(session.tally.record().to_json())


def test_a_forecast_that_does_not_fit_is_computed_and_starts_anew():
    outcomes, _, session = run(REUSE, [8.0, 9.0, 10.0, 11.0, 12.0], refuse="shape_changed")
    assert outcomes == [["full"]] * 5
    reasons = [c.rows[0].reason for c in session.tally.record().calls]
    assert reasons == ["warm_up", "warm_up", "shape_changed", "no_anchor", "shape_changed"]


def test_threshold_zero_asks_for_no_features():
    class Plain(FakeNetwork):
        def full(self, rows, keep_features, keep_embedded=False):
            assert not keep_features
            return super().full(rows, keep_features, keep_embedded)

    session = Session(SpeCaConfig(threshold=0.0), HEADER)
    for i in range(5):
        session.evaluate(Call(float(i), 1.0, i, 0.5, 1, ("s",)), Plain(float(i), 1))
    assert session.tally.totals().full == 5
    assert session.tally.totals().cache_bytes == 0


def test_closing_frees_the_anchors_and_keeps_the_record():
    _, _, session = run(REUSE, [9.0, 10.0])
    assert (
        session.tally.totals().cache_bytes == 2 * 2 * 4 * 4
    )  # two anchors of features and output, 4 fp32 numbers each
    record = session.close("finished")
    assert session.streams.nbytes == 0
    assert session.tally.record() is record
    assert record.status == "finished"
