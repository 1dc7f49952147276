"""What is returned: what lies between the verified output and the direct forecast; and all rows in their order."""

import torch

from speca.answer import Part, Speculated, answer, beside_direct, join


def rows(*values):
    """(R, 4), each row of one value."""
    return torch.tensor(values)[:, None].expand(-1, 4)


SPECULATED = Speculated([1, 3, 4], (rows(1.0, 2.0, 3.0),), (rows(5.0, 6.0, 7.0),))


def test_an_answer_lies_half_way_between_its_two_ways():
    part = answer(SPECULATED, [1, 4])
    assert part.rows == [1, 4]
    assert torch.equal(part.output[0], rows(3.0, 5.0))
    assert answer(SPECULATED, [1, 3, 4]).output[0].dtype == SPECULATED.verified[0].dtype


def test_what_a_check_taught_is_kept_by_row():
    beside = beside_direct(answer(SPECULATED, [3]), SPECULATED)
    assert list(beside) == [3]
    assert torch.equal(beside[3][0], rows(-2.0))


def test_parts_are_joined_in_the_order_of_the_batch():
    (joined,) = join([Part([2, 0], (rows(3.0, 1.0),)), Part([1], (rows(2.0),))], 3)
    assert torch.equal(joined, rows(1.0, 2.0, 3.0))
    whole = (rows(1.0, 2.0),)
    assert join([Part([0, 1], whole)], 2) is whole
