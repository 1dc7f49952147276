"""SpeCa Sweep through ComfyUI's real executor."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from test_compare import EMOJI, calls, comparison, counted, edited, graph, left_behind

pytestmark = pytest.mark.comfy
__all__ = ["calls", "comparison"]  # fixtures

STEPS = 12


def sweep(model: str = "tiny", **inputs: Any) -> dict[str, Any]:
    """The comparison's graph with a sweep in its place."""
    asked = graph(model)
    given = {name: asked["7"]["inputs"][name] for name in ("noise", "guider", "sampler", "sigmas", "latent_image")}
    given |= {"vae": ["8", 0]} if model != "tiny" else {}
    asked["7"] = {"class_type": "SpeCaSweep", "inputs": given | inputs}
    return {key: node for key, node in asked.items() if key not in ("9", "10", "11")}


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def test_a_table_and_a_plot_of_every_run(graphs: Any, output: Path, calls: list[None]) -> None:
    result = graphs.run(sweep(EMOJI, thresholds="0.06, 0.3", seeds=2))
    assert result.success, result.error
    (table,) = output.rglob("*.csv")
    (plot,) = output.rglob("*.png")
    assert plot.stat().st_size > 5000
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [(row["seed"], row["threshold"]) for row in rows] == [
        ("1", "0.06"), ("1", "0.3"), ("2", "0.06"), ("2", "0.3")
    ]  # fmt: skip
    for strict, generous in zip(rows[::2], rows[1::2], strict=True):
        assert float(strict["psnr_db"]) > float(generous["psnr_db"]) > 10
        skipped = [int(row["accepted"]) + int(row["trusted"]) for row in (strict, generous)]
        assert skipped[0] < skipped[1]
        assert strict["seconds_uncached"] == generous["seconds_uncached"]
    assert rows[0]["psnr_db"] != rows[2]["psnr_db"]
    # Each seed once without SpeCa; of four runs with it each has a pass without the blocks besides, a rejected call is
    # two, a trusted one none.
    rejected, trusted = (sum(int(row[name]) for row in rows) for name in ("rejected", "trusted"))
    assert len(calls) == 1 + 2 * STEPS + 4 * (STEPS + 1) + rejected - trusted


@pytest.mark.parametrize(
    ("thresholds", "said"),
    [("0.1, many", "'many' in thresholds is no number"), ("0", "must be above 0"), (" , ", "at least one threshold")],
)
def test_bad_thresholds_are_refused_before_anything_runs(
    graphs: Any, calls: list[None], output: Path, thresholds: str, said: str
) -> None:
    result = graphs.run(sweep(thresholds=thresholds))
    assert not result.success
    assert said in result.error["exception_message"]
    assert calls == []


def test_a_guider_without_speca(graphs: Any, output: Path) -> None:
    result = graphs.run(edited(sweep(), "4", model=["1", 0]))
    assert not result.success
    assert "Put a SpeCa node (not bypassed) between the model and the guider" in result.error["exception_message"]


@pytest.mark.parametrize("call", [3, 20, 40])
def test_a_cancelled_sweep_leaves_nothing(
    graphs: Any, output: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    counted(monkeypatch, interrupt_at=call)
    result = graphs.run(sweep(thresholds="0.1, 0.6", seeds=2))
    assert not result.success
    assert "execution_interrupted" in [name for name, _ in result.messages]
    assert left_behind() == []
    assert list(output.rglob("*")) == []
