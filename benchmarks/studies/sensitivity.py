"""What does an error cost? One wrong output in a run, and the error of the final picture that it causes.

    python dev.py study sensitivity [--models flux-photographs,dit-clipart] [--steps 28] [--samples 4]

Every call is computed; to one call's output an error of 3 % of its length is added, of one of two kinds:

- *moving*: in the direction in which the output was moving, which is where a forecast goes wrong;
- *smooth*: noise with the spectrum of pictures (1/f^1.5 in amplitude), in no direction that the model knows.

The ratio of the final latent's relative error to that of the output is what an error at that noise level costs. It is
held against `speca.schedule.NoiseLevel.final_error`, which weighs errors in SpeCa, for several values of its one
constant, `decided_at`: the best is the one for which measured over computed varies least from call to call. *Shown* is
what a run's own pictures say of it (`speca.undecided`), the geometric mean over samples.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import environment

SIZE = 0.03
SEEN_EVERY = 3
"""One in so many calls is computed, in the run whose pictures are looked at."""
CANDIDATES = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 40.0, 1e6)
NEVER_UNDONE = 1e6


@dataclass(frozen=True)
class Cost:
    """call: its number. step: by how much sigma falls after it. final: relative error of the final latent."""

    call: int
    sigma: float
    step: float
    final: float

    @property
    def ratio(self) -> float:
        return self.final / SIZE


class Recorder:
    """Around a network's forward: keeps the outputs and sigmas of a run."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.sigmas: list[float] = []

    def __call__(self, executor: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "sigmas" in a)
        output = executor(x, *args, **kwargs)
        self.outputs.append(output.clone())
        self.sigmas.append(float(options["sigmas"].flatten()[0]))
        return output


class OneError:
    """Around a network's forward: adds `error`, (B, ...), to the output of the call numbered `at`."""

    def __init__(self, at: int, error: Any) -> None:
        self._at = at
        self._error = error
        self._call = -1

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        output = executor(*args, **kwargs)
        self._call += 1
        return output + self._error if self._call == self._at else output


def directions(outputs: Sequence[Any]) -> dict[str, list[Any]]:
    """For each kind, the direction of the error at each call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    moving = [b - a for a, b in itertools.pairwise(outputs)]
    return {
        "moving": [moving[0], *moving],
        "smooth": [picture_noise(output.shape, generator) for output in outputs],
    }


def picture_noise(shape: Sequence[int], generator: Any) -> Any:
    """(B, C, ...) noise whose amplitude falls as 1/f^1.5 over the dimensions after the channels."""
    import torch

    sides = tuple(range(2, len(shape)))
    squares = torch.zeros(tuple(shape[2:]))
    for axis, side in enumerate(shape[2:]):
        squares = squares + torch.fft.fftfreq(side).square().view([-1 if a == axis else 1 for a in range(len(sides))])
    spectrum = torch.fft.fftn(torch.randn(tuple(shape), generator=generator), dim=sides)
    return torch.fft.ifftn(spectrum / (squares.sqrt() + 1 / max(shape[2:])) ** 1.5, dim=sides).real


def tried(n_calls: int) -> list[int]:
    """The calls that are made wrong: all of the first and last, some between."""
    return sorted({0, 1, 2, 3, *range(5, n_calls, 3), n_calls - 2, n_calls - 1})


def _run(subject: Any, case: Any, batch: Any, around: Any, callback: Any = None) -> Any:
    """The latents of a run with `around` the network. Not by ComfyUI's wrappers, which PixArt and HunyuanDiT do not
    run."""
    from measure.sampling import sample
    from speca.adapters.base import exchanged_forward

    network = subject.patcher.model.diffusion_model
    with exchanged_forward(network, functools.partial(around, network.forward)):
        return sample(subject.patcher, subject, case, batch, callback).latents


def costs(subject: Any, case: Any, n_samples: int) -> dict[str, list[Cost]]:
    """By kind of error; one run for each call that is `tried`."""
    from measure.quality import relative_error
    from measure.sampling import batch_of

    batch = batch_of(subject, n_samples, 100)
    run = functools.partial(_run, subject, case, batch)
    recorder = Recorder()
    truth = run(recorder)
    ends = [*recorder.sigmas[1:], 0.0]
    found: dict[str, list[Cost]] = {}
    for kind, directed in directions(recorder.outputs).items():
        for call in tried(len(directed)):
            output, direction = recorder.outputs[call], directed[call]
            length = [-1, *[1] * (output.ndim - 1)]
            scale = output.flatten(1).norm(dim=1).view(length) / direction.flatten(1).norm(dim=1).view(length)
            final = relative_error(run(OneError(call, SIZE * scale * direction)), truth)
            sigma = recorder.sigmas[call]
            found.setdefault(kind, []).append(Cost(call, sigma, sigma - ends[call], statistics.geometric_mean(final)))
    return found


def shown(subject: Any, case: Any, n_samples: int) -> float:
    """What the pictures of computed calls say of `decided_at`, before it is set against what is usual."""
    from measure.sampling import batch_of
    from speca.path import SamplingPath
    from speca.undecided import Undecided

    recorder, seen = Recorder(), []
    batch = batch_of(subject, n_samples, 100)
    _run(subject, case, batch, recorder, lambda step, denoised, x, total: seen.append(denoised.clone()))
    path = SamplingPath(subject.patcher.model.model_sampling, [*recorder.sigmas, 0.0])
    learnt = []
    for row in range(n_samples):
        undecided = Undecided()
        for sigma, denoised in list(zip(recorder.sigmas, seen, strict=True))[::SEEN_EVERY]:
            level = path.level(sigma)
            if level is not None:
                undecided.see(level.ratio, denoised[row : row + 1])
        learnt.append(math.sqrt(undecided.variance or 0.0))
    return statistics.geometric_mean(learnt) if all(learnt) else math.nan


def scatter(subject: Any, measured: Sequence[Cost], decided_at: float) -> float:
    """The standard deviation of log(measured / computed) over the calls, were `decided_at` this."""
    from speca.path import SamplingPath

    path = SamplingPath(subject.patcher.model.model_sampling, [*(cost.sigma for cost in measured), 0.0])
    levels = [(cost, path.level(cost.sigma)) for cost in measured]
    return statistics.pstdev(
        math.log(cost.ratio / level.final_error(cost.step, decided_at)) for cost, level in levels if level is not None
    )


def _header() -> list[str]:
    names = ["never" if c == NEVER_UNDONE else f"{c:g}" for c in CANDIDATES]
    return [
        "| model | error | shown | equal | " + " | ".join(names) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(CANDIDATES),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="default: all that are there")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()

    environment.prepare()
    from measure.sampling import Case
    from measure.subjects import load, trained

    record: dict[str, Any] = {"versions": environment.versions(), "models": {}}
    lines = [
        "Scatter of what an error costs (standard deviation of log(measured / computed), over calls), by `decided_at`;",
        f"{options.steps} steps, {options.sampler}, {options.scheduler}, {options.samples} samples. *Moving*: an error "
        "where the output was moving; *smooth*:",
        "noise with a picture's spectrum. *Equal*: every call weighs the same. *Never*: nothing is undone. *Shown*: "
        "what the run's own pictures say of it.",
        "",
        *_header(),
    ]
    for name in options.models.split(",") if options.models else trained():
        subject = load(name)
        case = Case(options.steps, options.sampler, options.scheduler)
        by_kind, learnt = costs(subject, case, options.samples), shown(subject, case, options.samples)
        record["models"][name] = {
            "case": case.key,
            "samples": options.samples,
            "weights": subject.weights,
            "shown": learnt,
        }
        for kind, measured in by_kind.items():
            equal = statistics.pstdev([math.log(cost.ratio) for cost in measured])
            spreads = {c: scatter(subject, measured, c) for c in CANDIDATES}
            best = min(spreads, key=spreads.__getitem__)
            cells = [f"**{v:.2f}**" if c == best else f"{v:.2f}" for c, v in spreads.items()]
            lines.append(f"| {name} | {kind} | {learnt:.1f} | {equal:.2f} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
            record["models"][name][kind] = {
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
