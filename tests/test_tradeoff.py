"""The picture of a trade-off: what is joined, and where labels stand."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.comfy


@pytest.fixture
def tradeoff(comfy: Any) -> Any:
    from speca_pack.nodes import tradeoff

    return tradeoff


def test_only_the_best_are_joined(tradeoff: Any) -> None:
    points = [(2.0, 40.0), (1.5, 50.0), (1.8, 38.0), (3.0, 30.0), (2.0, 35.0)]
    assert tradeoff.frontier(points) == [(1.5, 50.0), (2.0, 40.0), (3.0, 30.0)]
    assert tradeoff.frontier([(2.0, 40.0), (2.0, 40.0)]) == [(2.0, 40.0)] * 2
    assert tradeoff.frontier([]) == []


def test_no_label_stands_over_a_ring_or_another_label(tradeoff: Any) -> None:
    points = [(1.0, 60.0), (2.0, 45.0), (2.05, 44.0), (2.1, 43.5), (4.0, 30.0)]
    plot = tradeoff.Plot("a goal", points)
    for i, point in enumerate(points[1:4]):
        plot.run((2.0, 46.0), point, f"run {i + 1} at threshold 0.{i}", chosen=i == 1)
    assert tuple(plot.picture().shape) == (1, tradeoff.SIZE[1], tradeoff.SIZE[0], 3)
    rings, labels = plot._taken[:3], plot._taken[3:]
    assert len(labels) == 3
    for i, label in enumerate(labels):
        for other in rings + labels[:i]:
            apart_across = label[2] <= other[0] or other[2] <= label[0]
            assert apart_across or label[3] <= other[1] or other[3] <= label[1]
