"""What is chosen on all models but one: by hand, on rows that are made up."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import comfy_env

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from left_out import choose as choosing
from left_out.choose import beyond_sight, choose, gather

ROOT = Path(__file__).resolve().parent.parent
SPEEDS = (2.0, 3.0, 4.0, 5.0)


def row(model: str, method: str, speed: float, mean: float, worst: float, label: str = "") -> dict[str, str]:
    figures = {"speedup": speed, "psnr_mean": mean, "psnr_p10": (mean + worst) / 2, "psnr_worst": worst}
    text = {name: f"{value}" for name, value in figures.items()}
    return {"model": model, "steps": "28", "sampler": "euler", "method": method, "label": label, **text}


def rows(model: str, method: str, mean: float, below: float = 2.0, candidate: str = "") -> list[dict[str, str]]:
    """The same quality at every speed; the worst sample `below` the mean."""
    return [
        row(model, method, speed, mean - speed, mean - speed - below, f"{candidate} threshold {speed:g}")
        for speed in SPEEDS
    ]


def models(figures: dict[str, dict[str, float]], below: dict[str, float] | None = None) -> list[dict[str, str]]:
    """Model -> candidate -> mean; the rivals are at 40 and 39 everywhere."""
    made = []
    for model, candidates in figures.items():
        made += rows(model, "fewer_steps", 40.0) + rows(model, "taylor_last", 39.0, below=0.5)
        for name, mean in candidates.items():
            made += rows(model, "speca", mean, (below or {}).get(name, 2.0), candidate=name)
    return made


def gathered(made: list[dict[str, str]]):
    return gather(made, ("own_plan",))


def test_the_margin_is_over_the_best_rival_of_each_kind():
    measured = gathered(models({"m": {"a": 43.0}}))["m", 28]
    assert measured.best_rival(3.0)[0] == "fewer_steps"
    # The mean against 40, the worst sample, 41, against the best worst one, 38.5.
    assert measured.margin("a", 3.0) == (pytest.approx(3.0), pytest.approx(43.0 - 2.0 - 38.5))
    assert measured.margin("a", 9.0) is None


def test_a_candidate_that_is_never_that_fast_is_far_behind():
    made = [r for r in models({"m": {"a": 50.0}}) if r["method"] != "speca" or float(r["speedup"]) < 3]
    assert gathered(made)["m", 28].margin("a", 3.0) == (choosing.NOT_REACHED, choosing.NOT_REACHED)


def test_a_model_has_no_say_in_what_is_chosen_for_it():
    figures = {
        "easy": {"a": 60.0, "b": 41.0},
        "hard": {"a": 41.0, "b": 45.0},
        "harder": {"a": 41.0, "b": 44.0},
    }
    measured = gathered(models(figures))
    assert choose(measured, "easy", "shipped") == "b"
    assert choose(measured, "hard", "shipped") == "a"
    # Whatever it scores itself changes nothing.
    figures["easy"]["a"] = 99.0
    assert choose(gathered(models(figures)), "easy", "shipped") == "b"


def test_the_choice_is_made_where_all_candidates_are_measured():
    """Of steps at which only some are tried, nothing is compared."""
    made = models({"one": {"a": 43.0, "b": 45.0}, "two": {"a": 43.0, "b": 45.0}})
    made += [row | {"steps": "50"} for row in models({"one": {"a": 90.0}, "two": {"a": 90.0}})]
    assert choose(gathered(made), "one", "shipped") == "b"


def test_what_is_shipped_is_kept_where_nothing_is_clearly_better():
    figures = {"one": {"shipped": 44.95, "b": 45.0}, "two": {"shipped": 44.95, "b": 45.0}}
    below = {"shipped": 9.0, "b": 1.0}
    assert choose(gathered(models(figures, below)), "one", "shipped") == "shipped"
    figures["two"]["b"] = 45.2
    assert choose(gathered(models(figures, below)), "one", "shipped") == "b"
    assert choose(gathered(models(figures, below)), "two", "shipped") == "shipped"


def test_of_equals_the_one_with_the_better_worst_samples_is_chosen():
    figures = {"one": {"a": 45.0, "b": 44.95}, "two": {"a": 45.0, "b": 44.95}}
    measured = gathered(models(figures, below={"a": 9.0, "b": 1.0}))
    assert choose(measured, "one", "shipped") == "b"
    measured = gathered(models(figures, below={"a": 1.0, "b": 1.0}))
    assert choose(measured, "one", "shipped") == "a"


def test_a_lone_model_cannot_be_left_out():
    with pytest.raises(ValueError, match="no other model than m"):
        choose(gathered(models({"m": {"a": 43.0}})), "m", "shipped")


def test_every_candidate_is_a_valid_setting_and_has_a_name_of_its_own(comfy):
    from left_out import grid
    from speca.config import SpeCaConfig

    every = grid.candidates(grid.CHOSEN_AT)
    assert grid.candidates(20) == [grid.defaults()]
    assert grid.defaults() in every
    assert len(every) == math.prod(map(len, grid.GRID.values())) + sum(map(len, grid.ALONE.values()))
    assert len({candidate.name for candidate in every}) == len(every)
    for candidate in every:
        SpeCaConfig(**dict(candidate.fields))
        assert {choosing.candidate_of({"label": s.label}) for s in candidate.settings()} == {candidate.name}
    for name, values in grid.ALONE.items():
        module, _, constant = name.rpartition(".")
        now = getattr(importlib.import_module(module), constant) if module else getattr(SpeCaConfig(), constant)
        assert now not in values, f"{name} is tried as it is"


def test_a_constant_is_another_for_one_run_alone(comfy, monkeypatch):
    import methods.speca
    import speca.verify
    from measure.sampling import Case, batch_of
    from measure.subjects import load

    seen = []

    def interrupted(*args: Any) -> None:
        seen.append(speca.verify.CARRIED_GROWTH)
        raise KeyboardInterrupt

    monkeypatch.setattr(methods.speca, "sample", interrupted)
    tiny, was = load("tiny_flux"), speca.verify.CARRIED_GROWTH
    setting = methods.speca.SpeCa((), constants=(("speca.verify.CARRIED_GROWTH", 7.0),))
    with pytest.raises(KeyboardInterrupt):
        setting.run(tiny, Case(8), batch_of(tiny, 1), 8)
    assert seen == [7.0]
    assert was == speca.verify.CARRIED_GROWTH


def test_the_table_shows_mean_tenth_percentile_and_worst_side_by_side_and_names_what_is_missed(tmp_path, comfy):
    from tables import left_out

    made = models({"one": {"a": 44.0}, "two": {"a": 41.0}}) + rows("one", "own_plan", 43.5)
    text = left_out.write(made, tmp_path)
    assert "| one | 42.0 / 41.0 / 40.0 (+4.0, fewer steps) |" in text
    assert "- two, 28 steps, 2x: +1.0 dB, the goal is +3" in text
    assert "- one, 28 steps, 2x:" not in text
    # What has no checks is no rival; what they are worth is said by itself.
    assert "| one | 28 | +0.5 | +0.5 | +0.5 | +0.5 |" in text
    assert (tmp_path / "left-out.md").read_text() == text + "\n"
    assert (tmp_path / "left-out.json").is_file()


def test_another_choice_is_worth_what_it_is_above_the_usual_one(tmp_path, comfy):
    from tables import left_out

    made = models({"m": {"a": 43.0, "b": 41.0}, "n": {"a": 45.0, "b": 44.0}, "o": {"a": 43.0}}, below={"b": 1.0})
    assert "| b | 28 | -1.5 / -0.5 | -1.5 / -0.5 |" in left_out.write(made, tmp_path)


def test_what_acts_with_noise_alone_is_chosen_and_shown_by_itself(tmp_path, comfy):
    from left_out import grid
    from tables import left_out

    shipped, other, _ = (candidate.name for candidate in grid.candidates_with_noise())
    made = models({"one": {shipped: 44.0}, "two": {shipped: 41.0}})
    noisy = models({"one": {shipped: 41.0, other: 43.0}, "two": {shipped: 41.0, other: 40.0}})
    made += [row | {"sampler": grid.NOISY} for row in noisy]
    text = left_out.write(made, tmp_path)
    assert f"| one | {shipped} | 39.0 / 38.0 / 37.0 (+1.0, fewer steps) |" in text
    assert f"| two | {other} | 38.0 / 37.0 / 36.0 (+0.0, fewer steps) |" in text
    assert f"| one | {shipped} |  |" in text  # of the other sampler nothing is said above


def test_steps_at_which_a_choice_was_not_measured_have_a_dash(tmp_path, comfy):
    from tables import left_out

    made = models({"one": {"a": 44.0, "b": 50.0}, "two": {"a": 41.0, "b": 50.0}})
    made += [row | {"steps": "50"} for row in models({"one": {"a": 44.0}, "two": {"a": 44.0}})]
    text = left_out.write(made, tmp_path)
    assert "| one | - | - | - | - |" in text
    assert "50 steps, 2x" not in text


def test_what_was_chosen_is_measured_at_the_other_steps_too(tmp_path, comfy, monkeypatch):
    import bench
    from left_out import grid
    from measure import environment

    monkeypatch.setattr(environment, "commit", lambda: "")
    monkeypatch.setattr(grid, "GRID", {"order": (2,)})
    monkeypatch.setattr(grid, "ALONE", {"max_consecutive": (2,)})
    monkeypatch.setattr(grid, "THRESHOLDS", (0.5,))
    monkeypatch.setattr(grid, "NOISY_THRESHOLDS", (0.5,))
    monkeypatch.setattr(choosing, "choose", lambda measured, model, defaults: f"{defaults} max_consecutive 2")
    asked = {"models": ["tiny_flux"], "methods": ["fewer_steps"], "steps": [28, 8], "samples": 1, "again": []}
    flags = {"quick": False, "report": False, "no_report": False, "unseen": False, "first_seed": 0}
    bench.left_out(argparse.Namespace(**asked, **flags), tmp_path)
    found = {(r["steps"], r["sampler"], r["label"]) for r in bench.Table(tmp_path / "left-out.csv").rows}
    assert {("28", "euler", "order 2 threshold 0.5"), ("8", "euler", "order 2 threshold 0.5")} <= found
    assert ("8", "euler", "order 2 max_consecutive 2 threshold 0.5") in found
    assert ("28", grid.NOISY, "order 2 threshold 0.5") in found


def test_models_that_are_to_be_unseen_are_scored_as_shipped_in_a_table_of_their_own(tmp_path, comfy, monkeypatch):
    import bench
    from left_out import grid
    from measure import environment

    monkeypatch.setattr(environment, "commit", lambda: "")
    monkeypatch.setattr(grid, "THRESHOLDS", (0.5, 3.0))
    asked = {"models": ["tiny_flux"], "methods": ["fewer_steps"], "steps": [8], "samples": 1, "again": []}
    flags = {"quick": False, "report": False, "no_report": False, "unseen": True, "first_seed": 0}
    bench.left_out(argparse.Namespace(**asked, **flags), tmp_path)
    labels = {r["label"] for r in bench.Table(tmp_path / "unseen.csv").rows if r["method"] == "speca"}
    assert labels == {f"{grid.defaults().name} threshold {t:g}" for t in (0.5, 3.0)}
    text = (tmp_path / "unseen.md").read_text()
    assert "8 steps: SpeCa's PSNR" in text
    assert "chosen on the others" not in text
    assert not (tmp_path / "left-out.md").exists()


def test_nothing_is_chosen_on_a_model_that_is_to_be_unseen(comfy):
    from measure.subjects import of_zoo, unseen
    from zoo.specs import UNSEEN, ZOO

    assert set(UNSEEN) < set(ZOO)
    assert not set(of_zoo()) & set(UNSEEN)
    assert set(unseen()) <= set(UNSEEN)


def test_what_lies_far_from_the_speeds_shown_is_not_measured_again():
    made = []
    for method, speeds in (("taylor_last", (1.2, 1.7, 1.8, 2.5, 4.0, 6.0, 8.0, 9.0)), ("dpcache", (2.2, 3.0))):
        made += [row("m", method, s, 20.0 if s == 1.8 else 40.0 - s, 0.0, f"{s}") | {"family": method} for s in speeds]
    for candidate, speeds in (("a", (1.1, 1.5, 5.5, 7.0, 8.0)), ("b", (1.9, 5.1))):
        made += [row("m", "speca", s, 50.0 - s, 0.0, f"{candidate} threshold {s}") | {"family": "s"} for s in speeds]
    beyond = {label for _, _, _, label in beyond_sight(made)}
    # At 2x the curve goes from 1.7x, as what is slower than 2.5x at 1.8x is worse too.
    assert beyond == {"1.2", "9.0", "a threshold 1.1", "a threshold 8.0"}


def test_the_quick_table_is_made_in_a_process_per_model_and_in_a_folder_of_its_own(tmp_path, comfy):
    out = tmp_path / "quick"
    asked = ["--models", "tiny_flux,tiny_lumina2", "--methods", "fewer_steps", "--steps", "8", "--samples", "1"]
    asked += ["--first-seed", "7"]
    command = [sys.executable, str(ROOT / "benchmarks/bench.py"), "--quick", *asked, "--out", str(out)]
    env = os.environ | {"COMFYUI_PATH": str(comfy_env.comfyui_path()), "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    assert "| tiny_flux |" in made.stdout
    assert "| tiny_lumina2 |" in made.stdout
    assert "Methods rank as in benchmarks/results at 4 of 4 speeds" in made.stdout
    assert {path.suffix for path in out.glob("other-samples.*")} >= {".csv", ".md", ".json"}
    assert not list(out.glob("left-out.*"))
    again = subprocess.run(command, env=env, capture_output=True, text=True)
    assert again.returncode != 0
    assert "is not empty" in again.stderr


def test_a_run_ranks_as_the_kept_one_where_methods_are_clearly_apart(comfy):
    from tables.left_out import compared

    def record(speca: float, taylor: float, elsewhere: float) -> dict[str, Any]:
        at = {"speca": {"mean": speca}, "taylor_modules": {"mean": taylor}}
        other = {"speca": {"mean": elsewhere}, "fewer_steps": {"mean": 40.0}}
        nothing = {"3x": {}, "4x": {}, "5x": {}}
        return {"a-28": {"at": {"2x": at, **nothing}}, "b-28": {"at": {"2x": other, **nothing}}, "thresholds": {}}

    kept = record(50.0, 45.0, 44.0)
    everywhere = "at 4 of 4 speeds"
    assert everywhere in compared(record(52.0, 44.0, 45.0), kept)
    assert everywhere in compared(record(44.5, 45.0, 44.0), kept)  # a tie
    text = compared(record(43.0, 45.0, 44.0), kept)
    assert "at 3 of 4 speeds" in text
    assert "2x: TaylorSeer (every module) and SpeCa, -5.0 dB, now +2.0" in text
    # Over the models that both have, and only those.
    assert everywhere in compared(kept | {"c-28": record(1.0, 9.0, 9.0)["a-28"]}, kept)
    assert "at 3 of 4 speeds" in compared(record(50.0, 45.0, 38.0), kept)


def test_what_the_node_says_of_quality_and_what_the_readme_shows_is_what_is_kept(comfy):
    from speca_pack.nodes.speca import EXPECTED, QUALITY

    from tables.left_out import README_STEPS

    everything = json.loads((ROOT / "benchmarks/results/left-out.json").read_text())
    kept = {place: of for place, of in everything.items() if place.endswith(f"-{README_STEPS}")}
    assert kept
    for speed in ("2x", "3x", "5x"):
        at = [of["at"][speed]["speca"]["mean"] for of in kept.values() if "speca" in of["at"][speed]]
        low, high = f"{min(at):.0f} to {max(at):.0f}", f"{min(at):.0f} to {max(at):.0f} dB"
        assert f"{low} at {speed}" in EXPECTED or f"{high} at {speed}" in EXPECTED
    deviations = []
    for mean, threshold in re.findall(r"(\d+)(?: dB)? at (0\.\d+)", QUALITY):
        at = everything["thresholds"][threshold]
        assert f"{at['mean']:.0f}" == mean
        deviations.append(at["deviation"])
    assert len(deviations) == 4
    assert f"{max(deviations):.0f}." == QUALITY.rpartition(" ")[2]
    for language in ("ja", "zh"):
        told = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text())["SpeCa"]["inputs"]
        for text, name in ((EXPECTED, "mode"), (QUALITY, "threshold")):
            figures = set(re.findall(r"\d+(?:\.\d+)?", text))
            assert figures <= set(re.findall(r"\d+(?:\.\d+)?", told[name]["tooltip"])), (language, name)
    readme = (ROOT / "README.md").read_text()
    unseen = json.loads((ROOT / "benchmarks/results/unseen.json").read_text())
    for of in (*kept.values(), *(of for place, of in unseen.items() if place != "thresholds")):
        for quality in (point["speca"] for point in of["at"].values() if "speca" in point):
            assert " / ".join(f"{quality[name]:.1f}" for name in ("mean", "tenth", "worst")) in readme
