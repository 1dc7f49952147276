"""Several processes that run one network together take the same decisions: torch.distributed for real, gloo, two
processes, a tiny FLUX whose tokens are split between them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import comfy_env
from fake_network import HEADER, REUSE, FakeNetwork
from speca.call import Call
from speca.events import Row
from speca.session import Session

SPLIT_TOKENS = Path(__file__).parent / "split_tokens.py"


SETTINGS = {"order": 1, "accumulate_error": False}
RUNS = {
    "whole": {"whole": True, "threshold": 9.0},
    "halves": {"whole": False, "threshold": 9.0},
    "halves rejected": {"whole": False, "threshold": 1e-9},
}
Told = dict[str, dict[str, Any]]


def run(folder: Path, ranks: int, runs: dict[str, dict[str, Any]]) -> list[Told]:
    """What each rank told of its runs. Ranks that wait for one another fail after a minute."""
    results = [folder / f"rank{rank}.json" for rank in range(ranks)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COMFYUI_PATH": str(comfy_env.comfyui_path())}
    env["GLOO_SOCKET_IFNAME"] = "lo"
    wanted = json.dumps(list(runs.values()))
    processes = [
        subprocess.Popen(
            [sys.executable, SPLIT_TOKENS, str(rank), str(ranks), folder / "meeting", result, wanted],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, result in enumerate(results)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)[-4000:]
    return [dict(zip(runs, json.loads(result.read_text()), strict=True)) for result in results]


@pytest.fixture(scope="module")
def two(comfy: None, tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    plain = {"halves plain": {"whole": False, "speca": False}}
    runs = plain | {name: SETTINGS | wanted for name, wanted in RUNS.items()}
    return run(tmp_path_factory.mktemp("two"), 2, runs)


def outcomes(told: dict[str, Any]) -> list[str]:
    return [row["outcome"] for rows in told["rows"] for row in rows]


def test_half_the_tokens_each(two: list[Told], tmp_path: Path) -> None:
    """The output is whole on each rank, and that of one process is known."""
    one, other = (told["whole"] for told in two)
    assert one["native"] is None
    assert "accepted" in outcomes(one)
    assert one == other
    (alone,) = run(tmp_path, 1, {"whole": SETTINGS | RUNS["whole"]})
    assert outcomes(alone["whole"]) == outcomes(one)
    samples = [torch.tensor(told["samples"]) for told in (one, alone["whole"])]
    torch.testing.assert_close(*samples, rtol=1e-3, atol=1e-3)


def test_half_the_picture_each_by_the_worse_of_the_two(two: list[Told]) -> None:
    """Each rank's output is its own, and so is its error: only what is agreed on can be the same."""
    one, other = (told["halves"] for told in two)
    assert one["native"] is None
    assert {"accepted", "full"} <= set(outcomes(one))
    assert one["samples"] != other["samples"]
    assert one["rows"] == other["rows"]


def test_rejecting_everything_is_the_split_model(two: list[Told]) -> None:
    for told in two:
        assert "rejected" in outcomes(told["halves rejected"])
        assert told["halves rejected"]["samples"] == told["halves plain"]["samples"]


class TestAgreement:
    """By hand, with the other rank's values in the place of the reduction."""

    @pytest.fixture
    def other(self, monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
        """What another rank brings to each reduction."""
        import torch.distributed as dist

        brought: list[list[float]] = []

        def all_reduce(tensor: torch.Tensor, op: Any) -> None:
            assert op == dist.ReduceOp.MAX
            tensor.copy_(torch.maximum(tensor, torch.tensor(brought.pop(0))))

        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 2)
        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        return brought

    def test_the_worst_of_all_ranks(self, comfy: None, other: list[list[float]]) -> None:
        from speca.comfyui.ranks import worst

        other += [[0.5, 0.0]]
        assert worst([0.25, 1.0], torch.device("cpu")) == [0.5, 1.0]

    def test_no_number_is_infinite(self, comfy: None, other: list[list[float]]) -> None:
        from speca.comfyui.ranks import worst

        other += [[0.5]]
        assert worst([float("nan")], torch.device("cpu")) == [float("inf")]

    def test_one_process_asks_nobody(self, comfy: None) -> None:
        from speca.comfyui.ranks import several, worst

        assert not several()
        (value,) = worst([float("nan")], torch.device("cpu"))
        assert value != value


class TestOneOfTwoSessions:
    """By hand: outputs 9 to 12, each repeated from the one before it; `others` are what the other rank brings."""

    def run(self, others: dict[int, float], refuse: str | None = None) -> tuple[list[Row], list[list[float]]]:
        """Call 2 asks twice: who will speculate, and how wrong they are. `others` by the place in that order."""
        asked: list[list[float]] = []

        def agree(values: Sequence[float], device: torch.device) -> list[float]:
            asked.append(list(values))
            return [max(value, others.get(len(asked) - 1, 0.0)) for value in values]

        session = Session(REUSE, HEADER, agree=agree)
        for i, time in enumerate((8.0, 9.0, 10.0)):
            call = Call(time, time, i, i / 3, 1, ("s",))
            session.evaluate(call, FakeNetwork(time, 1, refuse=refuse))
        return [call.rows[0] for call in session.tally.record().calls], asked

    def test_alone(self) -> None:
        rows, asked = self.run({})
        assert [row.outcome for row in rows] == ["full", "full", "accepted"]
        assert asked == [[2.0], [2.0], [1.0], [pytest.approx(1 / 11)]]

    def test_what_one_will_not_speculate_on_none_does(self) -> None:
        rows, asked = self.run({2: 2.0})
        assert (rows[2].outcome, rows[2].reason) == ("full", "with_rejected")
        assert len(asked) == 3

    def test_the_larger_error_counts(self) -> None:
        rows, _ = self.run({3: 0.3})
        assert (rows[2].outcome, rows[2].error) == ("rejected", 0.3)
        rows, _ = self.run({3: 0.2})
        assert (rows[2].outcome, rows[2].error) == ("accepted", 0.2)

    def test_a_rank_that_cannot_forecast_has_all_compute(self) -> None:
        rows, asked = self.run({}, refuse="shape_changed")
        assert rows[2].reason == "shape_changed"
        assert asked[3] == [math.inf]
