"""Counts, prices and who hears of them."""

from dataclasses import replace

import pytest

from fake_network import HEADER, REUSE, FakeNetwork, run
from speca.call import Call
from speca.session import Session


class Clock:
    """Full calls take 10 s, everything else 1 s: advanced by the network itself."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("to_set_up", [0, 20])
def test_speedup_is_what_the_calls_would_have_cost_over_what_they_did(to_set_up):
    """What the first call has to set up takes time without SpeCa as well."""
    clock = Clock()

    class Timed(FakeNetwork):
        def full(self, rows, keep_features, keep_embedded=False):
            clock.now += 10 if clock.now else 10 + to_set_up
            return super().full(rows, keep_features, keep_embedded)

        def speculate(self, features, rows, on_embedded=()):
            clock.now += 1
            return super().speculate(features, rows, on_embedded)

    session = Session(replace(REUSE, threshold=0.15), HEADER, clock=clock)
    for i, time in enumerate([8.0, 9.0, 10.0, 11.0, 12.0]):
        session.evaluate(Call(time, 1.0, i, 0.0, 1, ("s",), kind="all"), Timed(time, 1))
        clock.now += 0.5  # the sampler's own work
    # full 10, full 10, accepted 1, rejected 11, accepted 1 and four pauses: 35 s, against 5 * 10 + 2
    totals = session.tally.totals()
    assert (totals.full, totals.accepted, totals.rejected) == (2, 2, 1)
    assert totals.seconds == pytest.approx(35 + to_set_up)
    assert totals.speedup == pytest.approx((52 + to_set_up) / (35 + to_set_up))


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
