"""Which calls belong to one stream."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch

from speca.comfyui.identity import Ordinals, function_of, likeness

SOME = SimpleNamespace()


def closing_over(value):
    return lambda: value


class Bound:
    def method(self):
        return self


BOUND = Bound()


@pytest.mark.parametrize(
    "make",
    [
        lambda: 0.5,
        lambda: {"a": [1, "x", None]},
        lambda: SOME,
        lambda: BOUND.method,
        lambda: closing_over(3),
        lambda: functools.partial(print, 1),
        lambda: torch.rand(2, 3),
    ],
    ids=["number", "containers", "object", "method", "closure", "partial", "tensor of a conditioning"],
)
def test_what_is_made_anew_at_each_call_is_the_same(make):
    assert likeness(make()) == likeness(make())
    assert hash(likeness(make())) == hash(likeness(make()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.5, 0.25),
        (True, 1),
        ({"a": 1}, {"b": 1}),
        (SimpleNamespace(), SimpleNamespace()),
        (Bound().method, BOUND.method),
        (closing_over(3), closing_over(4)),
        (torch.zeros(1, 4), torch.zeros(1, 5)),
    ],
)
def test_what_differs_does(one, other):
    assert likeness(one) != likeness(other)


def test_a_function_that_takes_notes_stays_the_same():
    notes: list[int] = []
    patch = closing_over(notes)
    before = likeness(patch)
    notes.append(1)
    assert likeness(patch) == before
    assert likeness(closing_over([1])) != before


def test_an_object_keeps_its_id_while_a_key_holds_it():
    keys = {likeness(object()) for _ in range(50)}
    assert len(keys) == 50


def test_tensors_are_the_same_however_many_rows_are_batched():
    assert likeness(torch.zeros(1, 7, 4)) == likeness(torch.zeros(2, 7, 4))


@pytest.mark.parametrize(
    "other",
    [
        {"options": {"perturb": True}},
        {"options": {"patches": {"attn1_patch": [print]}}},
        {"options": {"wrappers": {"diffusion_model": {"other": [print]}}}},
        {"kwargs": {"control": {"input": [torch.zeros(1, 4)]}}},
        {"kwargs": {"attention_mask": torch.zeros(1, 4)}},
    ],
    ids=["flag", "patch", "wrapper", "control", "mask"],
)
def test_what_acts_in_a_call_is_part_of_it(other):
    assert function_of(other.get("options", {}), other.get("kwargs", {})) != function_of({}, {})


def test_what_changes_by_nature_is_not():
    one = {"sigmas": torch.ones(1), "cond_or_uncond": [0], "uuids": ["a"], "block_index": 3}
    other = {"sigmas": torch.zeros(2), "cond_or_uncond": [0, 1], "uuids": ["b"]}
    assert function_of(one, {"control": None}) == function_of(other, {})


def test_calls_count_within_one_evaluation_of_the_sampler():
    ordinals = Ordinals()
    for _ in range(2):
        ordinals.begin()
        assert [ordinals.next(key, 1.0) for key in "aaba"] == [0, 1, 0, 2]


def test_calls_past_the_samplers_evaluation_count_by_sigma():
    ordinals = Ordinals()
    assert [ordinals.next("a", sigma) for sigma in (2.0, 2.0, 1.0, 1.0)] == [0, 1, 0, 1]
