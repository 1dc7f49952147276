"""What does an error cost? One forecast at a single call of a run, and the error of the final picture it causes.

    python dev.py study sensitivity [--models flux,dit,hunyuan_video] [--steps 28] [--samples 4]

Every call but one is computed; that one returns an output forecast from computed ones two calls apart. The ratio of the
final latent's relative error to the relative error of that output is what an error at that noise level costs. It is
held against `speca.schedule.NoiseLevel.final_error`, which weighs errors in SpeCa, for several values of its one
constant, `DECIDED_AT`: the best is the one for which measured over computed varies least from call to call.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import environment

KEY = "benchmark_one_wrong_call"
CANDIDATES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 1e6)
NEVER_UNDONE = 1e6


@dataclass(frozen=True)
class Cost:
    """call: its number. error: of the forecast output, relative; final: of the final latent, relative."""

    call: int
    sigma: float
    step: float
    error: float
    final: float

    @property
    def ratio(self) -> float:
        return self.final / self.error


class OneForecast:
    """DIFFUSION_MODEL wrapper (comfy/ldm): computes every call, and returns a forecast at one of them."""

    def __init__(self, model: Any, at: int) -> None:
        self._model = model
        self._at = at
        self._seen: list[tuple[float, Any]] = []
        self.error = 0.0
        self.sigma = 0.0

    def __call__(self, executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        from measure.quality import relative_error
        from speca.forecast import forecast_weights

        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "sigmas" in a)
        sigma = options["sigmas"].flatten()[:1]
        exact = executor(x, *args, **kwargs)
        self._seen.append((float(self._model.model_sampling.timestep(sigma).float()), exact.clone()))
        call = len(self._seen) - 1
        if call != self._at:
            return exact
        anchors = [self._seen[i] for i in sorted({max(call - 6, 0), max(call - 4, 0), max(call - 2, 0)})]
        times = [time for time, _ in anchors]
        weights = forecast_weights("newton", times, self._seen[-1][0], 2, 3.0).weights
        forecast = sum(w * output.float() for w, (_, output) in zip(weights, anchors, strict=True))
        self.error = statistics.geometric_mean(relative_error(forecast, exact))
        self.sigma = float(sigma)
        return forecast.to(exact.dtype)


def costs(subject: Any, case: Any, n_samples: int) -> list[Cost]:
    """One run a call, from the third on."""
    from comfy.patcher_extension import WrappersMP

    from measure.quality import relative_error
    from measure.sampling import batch_of, sample
    from methods.fewer_steps import Uncached

    batch = batch_of(subject, n_samples, 100)
    truth = Uncached().run(subject, case, batch).latents
    found: list[tuple[int, float, float, float]] = []
    for call in range(2, case.steps):
        wrapper = OneForecast(subject.patcher.model, call)
        patcher = subject.patcher.clone()
        patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrapper)
        latents = sample(patcher, subject, case, batch).latents
        found.append((call, wrapper.sigma, wrapper.error, statistics.geometric_mean(relative_error(latents, truth))))
    ends = [sigma for _, sigma, _, _ in found[1:]] + [0.0]
    return [Cost(call, s, s - end, error, final) for (call, s, error, final), end in zip(found, ends, strict=True)]


def scatter(subject: Any, measured: list[Cost], decided_at: float) -> float:
    """The standard deviation of log(measured / computed) over the calls, were `DECIDED_AT` this."""
    from speca.path import SamplingPath

    path = SamplingPath(subject.patcher.model.model_sampling, [cost.sigma for cost in measured] + [0.0])
    return statistics.pstdev(
        math.log(cost.ratio / path.level(cost.sigma).final_error(cost.step, decided_at)) for cost in measured
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="flux,dit,hunyuan_video")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()

    environment.prepare()
    from measure.sampling import Case
    from measure.subjects import load

    record: dict[str, Any] = {"versions": environment.versions(), "models": {}}
    lines = [
        "Scatter of what an error costs (standard deviation of log(measured / computed), over calls), by `DECIDED_AT`;",
        f"{options.steps} steps, {options.sampler}, {options.scheduler}, {options.samples} samples. *Equal*: every "
        "call weighs the same. *Never*: nothing is undone.",
        "",
        "| | equal | " + " | ".join("never" if c == NEVER_UNDONE else f"{c:g}" for c in CANDIDATES) + " |",
        "| --- |" + " --- |" * (len(CANDIDATES) + 1),
    ]
    for name in options.models.split(","):
        subject = load(name)
        case = Case(options.steps, options.sampler, options.scheduler)
        measured = costs(subject, case, options.samples)
        print(f"{name}, {case.key}")
        for cost in measured:
            print(
                f"  call {cost.call:2d} sigma {cost.sigma:8.3f} error {cost.error:.4f} final {cost.final:.5f}",
                flush=True,
            )
        equal = statistics.pstdev([math.log(cost.ratio) for cost in measured])
        spreads = {c: scatter(subject, measured, c) for c in CANDIDATES}
        best = min(spreads, key=spreads.__getitem__)
        cells = [f"**{v:.2f}**" if c == best else f"{v:.2f}" for c, v in spreads.items()]
        lines.append(f"| {name} | {equal:.2f} | " + " | ".join(cells) + " |")
        record["models"][name] = {
            "case": case.key,
            "samples": options.samples,
            "weights": subject.weights,
            "calls": [vars(cost) for cost in measured],
            "equal": equal,
            "scatter": {f"{c:g}": v for c, v in spreads.items()},
        }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sensitivity.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "sensitivity.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
