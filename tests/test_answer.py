"""What is returned: the verified output, the direct forecast, or what lies between; and all rows in their order."""

from dataclasses import replace

import pytest
import torch

from fake_network import HEADER, REUSE, FakeNetwork
from speca.answer import Part, Speculated, answer, best_direct_shares, join
from speca.call import Call
from speca.history import Anchor
from speca.session import Session


@pytest.mark.parametrize(("truth", "expected"), [("verified", 1.75), ("direct", 1.25), ("between", 1.375)])
def test_a_rejection_teaches_which_way_to_trust(truth, expected):
    """The direct forecast repeats 1; the last block says 2, and half-way is right for all that is known. The full call
    tells who was right, and the next accepted call, asked the same, goes half of the way there."""
    full = {"verified": 2.0, "direct": 1.0, "between": 1.25}[truth]

    class TwoWays(FakeNetwork):
        def speculate(self, features, rows, on_embedded=()):
            return (torch.full((1, 4), 2.0),)

    session = Session(replace(REUSE, threshold=0.4, threshold_end_factor=1000.0), HEADER)
    values = [1.0, 1.0, full]
    for i, value in enumerate(values):
        session.evaluate(Call(float(i), 1.0, i, 0.0, 1, ("s",)), TwoWays(float(i), 1, value=lambda t, row, v=value: v))
    call = Call(3.0, 1.0, 3, 1.0, 1, ("s",))  # at the run's end, where all is accepted
    session.streams.of(call)[0].history.record(Anchor(2.0, (torch.ones(1, 4),), (torch.ones(1, 4),)))
    (output,) = session.evaluate(call, TwoWays(3.0, 1))
    assert [call.outcome for call in session.tally.record().calls] == ["full", "full", "rejected", "accepted"]
    assert output.unique().tolist() == [expected]


def rows(*values):
    """(R, 4), each row of one value."""
    return torch.tensor(values)[:, None].expand(-1, 4)


SPECULATED = Speculated([1, 3, 4], (rows(1.0, 2.0, 3.0),), (rows(5.0, 6.0, 7.0),))


def test_each_accepted_row_moves_to_the_direct_forecast_by_its_own_share():
    part = answer(SPECULATED, [1, 4], [0.0, 0.25])
    assert part.rows == [1, 4]
    torch.testing.assert_close(part.output[0], rows(1.0, 4.0))


def test_without_a_share_the_verified_output_is_returned_as_it_is():
    assert answer(SPECULATED, [1, 3, 4], [0.0, 0.0, 0.0]).output[0] is SPECULATED.verified[0]


def test_shares_are_learnt_for_rows_that_were_both_forecast_and_computed_and_stay_between_both_ways():
    exact = Part([0, 3, 4], (rows(9.0, 3.0, 99.0),))
    assert best_direct_shares(SPECULATED, exact) == {3: 0.25, 4: 1.0}
    assert best_direct_shares(SPECULATED, Part([0], (rows(9.0),))) == {}


def test_two_equal_ways_teach_nothing():
    same = Speculated([0], (rows(1.0),), (rows(1.0),))
    assert best_direct_shares(same, Part([0], (rows(2.0),))) == {0: 0.0}


def test_parts_are_joined_in_the_order_of_the_batch():
    (joined,) = join([Part([2, 0], (rows(3.0, 1.0),)), Part([1], (rows(2.0),))], 3)
    assert torch.equal(joined, rows(1.0, 2.0, 3.0))
    whole = (rows(1.0, 2.0),)
    assert join([Part([0, 1], whole)], 2) is whole
