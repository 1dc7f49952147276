"""Does the verification error know the true error? Rank correlations, per metric and per place of verification.

    python dev.py study verification [--models flux,dit] [--steps 50] [--samples 16]

Every few calls are computed in full, as SpeCa would; the calls between are forecast for one to six calls ahead. At
each of those, at the very same input, the network is also computed in full. The *true error* is that of the accepted
output (the exact last block and head on forecast features) against it: |O_accepted - O_true| / |O_true| per sample.
Each *verification error* is what a method would have seen without that full evaluation. Spearman's rank correlation
says how well it sorts forecasts into good and bad; a threshold needs nothing else.

Also printed: the cost of an accepted call, which is forecast, verification and head, as a share of a full call.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from measure import environment

KEY = "benchmark_probe"
RUN_LENGTHS = (1, 2, 3, 4, 6)
"""Forecasts between full calls, in turn, so that near and far forecasts are judged together as in real use."""
WARMUP = 3

OUTPUT = "output"
LIKELY = "likely"
PLACES = {
    LIKELY: "the next line's, and how far the forecast reaches beyond the newest anchor (`verify.likely_error`)",
    OUTPUT: "the model's output, block and head on the forecast, against the output forecast directly",
    "update": "the last block's update, on forecast input, against its own forecast",
    "stream": "the last block's residual stream, against its own forecast (the paper's formula)",
    "orders": "two forecast orders of the output against each other, no model cost",
    "first": "the first block's update on the true input, against its own forecast",
}
METRICS_BY_PLACE = {
    LIKELY: ("relative_l2", "cosine"),
    OUTPUT: ("relative_l2", "relative_l1", "elementwise_l1", "cosine"),
    "update": ("relative_l2", "elementwise_l1"),
    "stream": ("relative_l2",),
    "orders": ("relative_l2",),
    "first": ("relative_l2",),
}


class Probe:
    """Drives one sampling run: full and forecast calls in a fixed pattern, every forecast compared with the truth."""

    def __init__(self, order: int, gain_limit: float) -> None:
        self._order = order
        self._gain_limit = gain_limit
        self._anchors: list[tuple[float, dict[str, Any]]] = []
        self._lengths = itertools.cycle(RUN_LENGTHS)
        self._calls = 0
        self._left = 0
        self.true_errors: list[float] = []
        self.errors: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.ahead: list[int] = []

    def forward(self, model: Any, anatomy: Any, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        sigma = kwargs["transformer_options"]["sigmas"]
        t = float(model.model_sampling.timestep(sigma.flatten()[:1]).float())
        self._calls += 1
        exact = self._full(anatomy, native, args, kwargs)
        if self._calls <= WARMUP or self._left == 0:
            self._anchors = [*self._anchors, (t, exact)][-(self._order + 1) :]
            self._left = next(self._lengths) if self._calls >= WARMUP else 0
            self._length = self._left
            return exact[OUTPUT]
        self._left -= 1
        return self._forecast(anatomy, native, args, kwargs, t, exact)

    def _full(self, anatomy: Any, native: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
        """The network as it is, keeping what each place of verification needs, (B, ...) each."""
        kept: dict[str, Any] = {}
        first_stage, first = anatomy.skipped[0]
        with ExitStack() as stack:
            watch(stack, anatomy.verification_stage, anatomy.verification_block, "last", kept)
            watch(stack, first_stage, first, "first", kept)
            output = native(*args, **kwargs)
        return {
            OUTPUT: output.clone(),
            "features": kept["last in"],
            "stream": kept["last out"],
            "update": [b - a for a, b in zip(kept["last in"], kept["last out"], strict=False)],
            "first": [b - a for a, b in zip(kept["first in"], kept["first out"], strict=False)],
        }

    def _forecast(
        self, anatomy: Any, native: Callable[..., Any], args: Any, kwargs: Any, t: float, exact: dict[str, Any]
    ) -> Any:
        from speca.adapters.base import exchanged_forward
        from speca.forecast import forecast_weights
        from speca.history import combine
        from speca.verify import ERROR_METRICS, likely_error, relative_l2

        times = [time for time, _ in self._anchors]

        def predicted(name: str, order: int) -> Any:
            weights = forecast_weights("newton", times, t, order, self._gain_limit).weights
            anchors = [anchor[name] for _, anchor in self._anchors]
            if isinstance(anchors[0], list):
                return [combine(weights, tensors, tensors[0].device) for tensors in zip(*anchors, strict=True)]
            return combine(weights, anchors, anchors[0].device)

        features = predicted("features", self._order)
        stage, block = anatomy.verification_stage, anatomy.verification_block
        kept: dict[str, Any] = {}

        def on_forecast(run: Callable[..., Any], *a: Any, **k: Any) -> Any:
            new_args, new_kwargs = stage.with_needed(block, a, k, tuple(f.clone() for f in features))
            return run(*new_args, **new_kwargs)

        with ExitStack() as stack:
            for skipped_stage, skipped in anatomy.skipped:
                stack.enter_context(exchanged_forward(skipped, skipped_stage.untouched(skipped)))
            watch(stack, stage, block, "last", kept)
            stack.enter_context(exchanged_forward(block, functools.partial(on_forecast, block.forward)))
            accepted = native(*args, **kwargs)

        update = [b - a for a, b in zip(features, kept["last out"], strict=False)]
        pairs = {
            OUTPUT: (predicted(OUTPUT, self._order), accepted),
            "update": (_joined(predicted("update", self._order)), _joined(update)),
            "stream": (_joined(predicted("stream", self._order)), _joined(kept["last out"])),
            "orders": (predicted(OUTPUT, self._order - 1), predicted(OUTPUT, self._order)),
            "first": (_joined(predicted("first", self._order)), _joined(exact["first"])),
        }
        self.true_errors += relative_l2(accepted, exact[OUTPUT]).tolist()
        newest = self._anchors[-1][1][OUTPUT]
        for place, metrics in METRICS_BY_PLACE.items():
            for metric in metrics:
                error = ERROR_METRICS[metric]
                if place == LIKELY:
                    direct, verified = pairs[OUTPUT]
                    found = likely_error(error(direct, verified), error(newest, direct))
                else:
                    found = error(*pairs[place])
                self.errors[place, metric] += found.tolist()
        self.ahead += [self._length - self._left] * accepted.shape[0]
        return accepted


def watch(stack: ExitStack, stage: Any, block: Any, name: str, kept: dict[str, Any]) -> None:
    """While `stack` is open, `kept["<name> in"]` and `["<name> out"]` are clones of what enters and leaves `block`."""
    from speca.adapters.base import exchanged_forward

    def run(native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kept[f"{name} in"] = [t.clone() for t in stage.needed(block, args, kwargs)]
        returned = native(*args, **kwargs)
        outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
        kept[f"{name} out"] = [t.clone() for t in outputs]
        return returned

    stack.enter_context(exchanged_forward(block, functools.partial(run, block.forward)))


def _joined(tensors: Sequence[Any]) -> Any:
    """(B, everything) of several (B, ...) tensors."""
    import torch

    return torch.cat([t.flatten(1) for t in tensors], dim=1)


def probe(subject: Any, case: Any, batch: Any, order: int, gain_limit: float) -> Probe:
    """One sampling run of `batch` under a probe."""
    from comfy.patcher_extension import WrappersMP

    from measure.sampling import sample
    from speca.adapters import recognise
    from speca.adapters.base import exchanged_forward

    driver = Probe(order, gain_limit)

    def apply_model(executor: Any, *args: Any, **kwargs: Any) -> Any:
        model = executor.class_obj
        network = model.diffusion_model
        forward = functools.partial(driver.forward, model, recognise(network), network.forward)
        with exchanged_forward(network, forward):
            return executor(*args, **kwargs)

    patched = subject.patcher.clone()
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    sample(patched, subject, case, batch)
    return driver


def correlations(driver: Probe) -> list[dict[str, Any]]:
    """Spearman's rho of each verification error with the true error, over all forecast calls and samples."""
    from scipy.stats import spearmanr

    return [
        {"place": place, "metric": metric, "rho": float(spearmanr(values, driver.true_errors).statistic)}
        for (place, metric), values in driver.errors.items()
    ]


def overhead(subject: Any, case: Any, runs: int = 3) -> dict[str, float]:
    """Medians at batch 1 of a full and of an accepted call, in milliseconds, and their ratio."""
    from measure.quality import median
    from measure.sampling import batch_of, sample
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    full, accepted = [], []
    for seed in range(runs):
        patched = attach(subject.patcher, SpeCaConfig(threshold=1e6, max_consecutive=1))
        sample(patched, subject, case, batch_of(subject, 1, first_seed=seed))
        record = attachment_of(patched).run_of()
        full += [call.ms for call in record.calls if call.outcome == "full"]
        accepted += [call.ms for call in record.calls if call.outcome == "accepted"]
    return {
        "full_ms": median(full),
        "accepted_ms": median(accepted),
        "share": median(accepted) / median(full),
        "one_block_share": 1 / subject.blocks,
        "one_block_share_real_depth": 1 / subject.depth,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="default: every trained model that is there")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--orders", default="1,2")
    parser.add_argument("--gain-limit", type=float, help="default: SpeCa's own")
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()
    environment.prepare()
    from measure.sampling import Case, batch_of
    from measure.subjects import SubjectMissingError, load, trained
    from speca.config import SpeCaConfig

    results = []
    for name in options.models.split(",") if options.models else trained():
        try:
            subject = load(name)
        except SubjectMissingError as missing:
            print(f"left out: {missing}")
            continue
        case, batch = Case(options.steps), batch_of(subject, options.samples)
        gain_limit = options.gain_limit or SpeCaConfig().noise_gain_limit
        for order in (int(text) for text in options.orders.split(",")):
            driver = probe(subject, case, batch, order, gain_limit)
            for found in correlations(driver):
                results.append({"model": name, "steps": options.steps, "order": order, **found})
            results[-1]["n"] = len(driver.true_errors)
            print(f"{name} order {order}: {len(driver.true_errors)} forecasts judged", flush=True)
        results.append({"model": name, "steps": options.steps, "overhead": overhead(subject, case)})
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "verification.json"
    if path.is_file():  # models that were measured before keep their place beside the new ones
        kept = json.loads(path.read_text())["results"]
        measured = {result["model"] for result in results}
        results = [result for result in kept if result["model"] not in measured] + results
    record = {"command": " ".join(sys.argv[1:]), "versions": environment.versions(), "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n")
    text = table(results)
    print(text)
    (options.out / "verification.md").write_text(text + "\n")


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per place and metric, a column per model and order; then the overheads."""
    columns = list(dict.fromkeys((r["model"], r["order"]) for r in results if "rho" in r))
    rows = list(dict.fromkeys((r["place"], r["metric"]) for r in results if "rho" in r))
    by = {(r["model"], r["order"], r["place"], r["metric"]): r["rho"] for r in results if "rho" in r}
    lines = [
        "Spearman's rank correlation of the verification error with the true error of the accepted output, over all "
        "forecast calls and samples of a run. (Two orders cannot disagree where the limit on the noise gain made them "
        "the same.)",
        "",
        "| verified | metric | " + " | ".join(f"{model}, order {order}" for model, order in columns) + " |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    for place, metric in rows:
        found = [by.get((model, order, place, metric)) for model, order in columns]
        values = " | ".join("" if rho is None else f"{rho:.3f}" for rho in found)
        lines.append(f"| {PLACES[place]} | {metric} | {values} |")
    lines += [
        "",
        "Cost of an accepted call (forecast, one block, head, comparison), median at batch 1.",
        "",
        "| model | full call, ms | accepted call, ms | share | one block of the model | of the real model |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        if "overhead" in result:
            o = result["overhead"]
            lines.append(
                f"| {result['model']} | {o['full_ms']:.2f} | {o['accepted_ms']:.2f} | {o['share']:.1%} "
                f"| {o['one_block_share']:.1%} | {o['one_block_share_real_depth']:.1%} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
