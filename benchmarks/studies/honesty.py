"""How far off is what the panel calls an error? Accepted and trusted calls, judged and true.

    python dev.py study honesty [--models flux-fluent,dit-clipart] [--steps 28] [--samples 4] [--thresholds 0.08,0.2]

SpeCa runs as it is shipped; beside each call that was forecast the network is computed in full on the very same input
(`speca.witness`). The *judged* error is what the check took that call's answer for, or what was trusted to be its
error; the *true* one is |answer - network| / |network|, both of that call alone, before weights and sums. The table
says how often the true error exceeds the judged one, for each model.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import environment

FACTORS = (1.0, 2.0, 3.0)
KINDS = ("accepted", "trusted")


def forecast(subject: Any, case: Any, batch: Any, threshold: float) -> dict[str, list[tuple[float, float]]]:
    """(judged, true) of every sample of every call of a run that was forecast, by `KINDS`."""
    from measure.sampling import sample
    from speca.comfyui.attach import attach, attachment_of, witnessed
    from speca.config import SpeCaConfig
    from speca.witness import Witness

    config = SpeCaConfig(threshold=threshold)
    patched = attach(subject.patcher, config)
    witness = Witness(config.error_metric)
    with witnessed(witness):
        sample(patched, subject, case, batch)
    record = attachment_of(patched).run_of()
    if record.header.native is not None:
        raise RuntimeError(f"{subject.name} ran natively: {record.header.native}")
    rows = [row for call in record.calls for row in call.rows if row.skipped]
    return {kind: [(row.judged, row.true) for row in rows if row.outcome == kind] for kind in KINDS}


def told(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Of (judged, true): how many, the median of true / judged, and the share over each of `FACTORS`."""
    if not pairs:
        return {"calls": 0}
    return {
        "calls": len(pairs),
        "median": statistics.median(true / max(judged, 1e-12) for judged, true in pairs),
        "over": {f"{f:g}": sum(true > f * judged for judged, true in pairs) / len(pairs) for f in FACTORS},
    }


def table(results: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """model -> threshold -> kind -> `told`, as Markdown; without those of which there are none."""
    lines = [
        "| model | threshold | kind | calls | true / judged, median | "
        + " | ".join(f"over {f:g}x" for f in FACTORS)
        + " |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(FACTORS),
    ]
    for model, by_threshold in results.items():
        for threshold, by_kind in by_threshold.items():
            for kind, of in by_kind.items():
                if of["calls"]:
                    shares = " | ".join(f"{share:.0%}" for share in of["over"].values())
                    lines.append(f"| {model} | {threshold} | {kind} | {of['calls']} | {of['median']:.2f} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="default: all that are there")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--thresholds", default="0.08,0.2")
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()

    environment.prepare()
    from measure.sampling import Case, batch_of
    from measure.subjects import load, trained

    results: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    weights = {}
    for name in options.models.split(",") if options.models else trained():
        subject = load(name)
        weights[name] = subject.weights
        batch = batch_of(subject, options.samples, 300)
        for threshold in options.thresholds.split(","):
            found = forecast(subject, Case(options.steps), batch, float(threshold))
            results.setdefault(name, {})[threshold] = {kind: told(pairs) for kind, pairs in found.items()}
    text = table(results)
    lines = [
        f"Accepted and trusted calls of SpeCa's defaults, {options.steps} steps, euler, simple,",
        f"{options.samples} samples: how often an answer's true error (the network in full on the very same input)",
        "exceeds what it was judged to be.",
        "Both of one call, relative, before weights and sums.",
        "",
        text,
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"versions": environment.versions(), "weights": weights, "steps": options.steps, "results": results}
    (options.out / "honesty.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "honesty.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
