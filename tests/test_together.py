"""Conditionings that come in calls of their own: what one had computed, the others have too."""

import math
from dataclasses import replace

from fake_network import HEADER, REUSE, FakeNetwork
from speca.call import Call
from speca.policy import Decision
from speca.session import Session
from speca.together import Together

FULL, SPECULATE = Decision("full", "warm_up"), Decision("speculate")


def call(stream, part="all", n_samples=1, time=1.0):
    return Call(time, 1.0, 0, 0.0, n_samples, tuple((stream, s) for s in range(n_samples)), part=part)


def evaluation(together, *wanted, part="all", splittable=True):
    """One evaluation: (stream, whether it speculates and is accepted) in turn -> whether each was computed."""
    computed = []
    for stream, accepted in wanted:
        of = call(stream, part)
        (decision,) = together.decide(of, [SPECULATE if accepted is not None else FULL], splittable)
        computed.append(decision.action == "full" or not accepted)
        together.made(of, computed[-1:])
    return computed


def after(first, computed, splittable=True):
    """What conditionings did together, once this call was made."""
    together = Together()
    together.decide(first, [FULL] * first.n_samples, splittable)
    together.made(first, computed)
    return together


def test_what_one_had_computed_those_that_follow_have_too():
    together = Together()
    assert evaluation(together, ("cond", None), ("uncond", True), ("perturbed", True)) == [True, True, True]
    assert evaluation(together, ("cond", True), ("uncond", True), ("perturbed", True)) == [False, False, False]
    assert evaluation(together, ("cond", False), ("uncond", True), ("perturbed", True)) == [True, True, True]


def test_where_they_parted_all_are_computed_next():
    together = Together()
    assert evaluation(together, ("cond", True), ("uncond", False)) == [False, True]
    assert evaluation(together, ("cond", True), ("uncond", True)) == [True, True]
    assert evaluation(together, ("cond", True), ("uncond", True)) == [False, False]


def test_parts_of_a_picture_go_apart_and_so_do_samples():
    together = Together()
    assert evaluation(together, ("cond", None), part="left") == [True]
    assert evaluation(together, ("uncond", True), part="right") == [False]
    assert evaluation(together, ("uncond", True), part="left") == [True]
    both = after(call("cond", n_samples=2), [True, False])
    decisions = both.decide(call("uncond", n_samples=2), [SPECULATE, SPECULATE], splittable=True)
    assert [d.action for d in decisions] == ["full", "speculate"]
    assert decisions[0].reason == "with_conditioning"


def test_a_batch_that_cannot_be_taken_apart_is_computed_whole():
    together = after(call("cond", n_samples=2), [True, False])
    decisions = together.decide(call("uncond", n_samples=2), [SPECULATE, SPECULATE], splittable=False)
    assert [d.action for d in decisions] == ["full", "full"]


def test_nothing_is_put_right_while_they_part():
    together = Together()

    def apart(stream, computed):
        of = call(stream)
        together.decide(of, [SPECULATE], True)
        found = together.apart(of, [0] if computed else [])
        together.made(of, [computed])
        return found

    assert [apart("cond", True), apart("uncond", True)] == [[], []]
    assert [apart("cond", False), apart("uncond", False)] == [[], []]
    assert [apart("cond", False), apart("uncond", True)] == [[], [0]]
    assert [apart("cond", True), apart("uncond", True)] == [[0], [0]]
    assert [apart("cond", True), apart("uncond", True)] == [[], []]


def test_a_conditioning_that_takes_the_place_of_another_is_not_held_against_it():
    """A keyframe changes the one conditioning there is: it is another stream from then on."""
    together = Together()
    for time, stream, computed in [(3.0, "before", False), (2.0, "after", True), (1.0, "after", False)]:
        of = call(stream, time=time)
        assert together.decide(of, [SPECULATE], True) == [SPECULATE]
        together.made(of, [computed])


def test_a_reason_of_its_own_is_kept():
    together = after(call("cond"), [True])
    assert together.decide(call("uncond"), [FULL], True) == [FULL]


def test_without_a_known_part_each_goes_alone():
    together = after(call("cond", part=None), [True])
    assert together.decide(call("uncond", part=None), [SPECULATE], True) == [SPECULATE]


def test_a_sample_is_as_wrong_as_its_worst_conditioning():
    together = Together()
    for time, found, counted in [(3.0, (0.1, 0.05), (0.1, 0.1)), (2.0, (0.02, 0.04), (0.02, 0.04))]:
        for stream, error, expected in zip(("cond", "uncond"), found, counted, strict=True):
            of = call(stream, time=time)
            together.decide(of, [SPECULATE], True)
            assert together.error(of, 0, error) == expected
            together.made(of, [False])
    other = call("cond", part="elsewhere")
    together.decide(other, [SPECULATE], True)
    assert together.error(other, 0, 0.01) == 0.01
    assert together.error(other, 0, math.inf) == math.inf
    assert together.error(other, 0, 0.01) == 0.01
    assert together.error(call("cond", part=None), 0, 0.001) == 0.001


def test_a_run_whose_conditionings_come_one_by_one():
    """The output of the first jumps at the fourth evaluation. That of the second is constant, and would be accepted."""
    session = Session(replace(REUSE, threshold=0.05, order=1), HEADER)
    for i, output in enumerate([8.0, 8.0, 8.0, 16.0, 16.0]):
        for stream, value in (("cond", output), ("uncond", 4.0)):
            session.evaluate(
                replace(call(stream, time=5.0 - i), step=i), FakeNetwork(5.0 - i, 1, lambda t, r, v=value: v)
            )
    outcomes = [(made.outcome, made.rows[0].reason) for made in session.tally.record().calls]
    conds, unconds = outcomes[::2], outcomes[1::2]
    assert [outcome == "accepted" for outcome, _ in conds] == [outcome == "accepted" for outcome, _ in unconds]
    rejected = [i for i, (outcome, _) in enumerate(conds) if outcome == "rejected"]
    assert rejected
    assert all(unconds[i] == ("full", "with_conditioning") for i in rejected)
