"""Does a run end at the speed that was asked for?

    python dev.py study speed [--models qwen-stamps,flux-fluent] [--samplers euler,heun] [--speeds 1.5,2,3,5]
        [--steps 28] [--seeds 20] [--wall-clock]

One run per seed, model, sampler and speed. Time is counted in blocks of the real model's depth, as the benchmark counts
it: a computed call costs the depth, a check one block, so the figures are the same on every machine. With --wall-clock
it is measured; on small models a check costs a large share of a computed call there, and some speeds are out of reach.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import environment

MODELS = "qwen-stamps,flux-fluent,dit-clipart"
SAMPLERS = "euler,dpmpp_2m,heun,euler_ancestral"
NEAR = 0.03


@dataclass(frozen=True)
class Ended:
    """One run: the speed asked for and got, dB, and why it ended elsewhere."""

    model: str
    sampler: str
    seed: int
    asked: float
    got: float
    psnr: float
    missed: str | None


@contextmanager
def counted_in_blocks(depth: int) -> Iterator[None]:
    """SpeCa's clock goes on by `depth` for a whole batch that is computed, by 1 for one that is forecast."""
    from speca.comfyui import attach
    from speca.comfyui.network import BoundNetwork

    now = [0.0]
    clock_of, full, speculate = attach.clock_of, BoundNetwork.full, BoundNetwork.speculate

    def share(network: Any, rows: Sequence[int] | None) -> float:
        return 1.0 if rows is None else len(rows) / network._n_rows

    def counted_full(self: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        now[0] += depth * share(self, rows)
        return full(self, rows, *args, **kwargs)

    def counted_speculate(self: Any, features: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        now[0] += share(self, rows)
        return speculate(self, features, rows, *args, **kwargs)

    attach.clock_of = lambda device: lambda: now[0]
    BoundNetwork.full, BoundNetwork.speculate = counted_full, counted_speculate
    try:
        yield
    finally:
        attach.clock_of, BoundNetwork.full, BoundNetwork.speculate = clock_of, full, speculate


def run(subject: Any, case: Any, seed: int, reference: Any, speed: float) -> Ended:
    from measure.quality import psnr
    from measure.sampling import batch_of, sample
    from speca.comfyui.attach import attach, attachment_of
    from speca.config import SpeCaConfig

    patched = attach(subject.patcher, SpeCaConfig(mode="speed", target_speedup=speed))
    result = sample(patched, subject, case, batch_of(subject, 1, seed))
    record = attachment_of(patched).run_of()
    if record.header.native is not None:
        raise RuntimeError(f"{subject.name} ran natively: {record.header.native}")
    quality = psnr(subject.picture(result.latents), subject.picture(reference))[0]
    totals = record.totals
    return Ended(subject.name, case.sampler, seed, speed, totals.speedup or 1.0, quality, totals.spending.missed)


def table(runs: Sequence[Ended]) -> str:
    """A line for each model, sampler and speed, as Markdown."""
    lines = [
        f"| model | sampler | asked | got, median | slowest to fastest | within {NEAR:.0%} | or says why "
        "| slower by more | PSNR |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    keys = list(dict.fromkeys((r.model, r.sampler, r.asked) for r in runs))
    for model, sampler, asked in keys:
        of = [r for r in runs if (r.model, r.sampler, r.asked) == (model, sampler, asked)]
        got = sorted(r.got for r in of)
        near = sum(abs(g / asked - 1) <= NEAR for g in got) / len(got)
        told = sum(abs(r.got / asked - 1) <= NEAR or r.missed is not None for r in of) / len(of)
        slow = sum(g < asked * (1 - NEAR) for g in got) / len(got)
        quality = sum(r.psnr for r in of) / len(of)
        lines.append(
            f"| {model} | {sampler} | {asked:g}x | {got[len(got) // 2]:.2f}x | {got[0]:.2f}x to {got[-1]:.2f}x "
            f"| {near:.0%} | {told:.0%} | {slow:.0%} | {quality:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--samplers", default=SAMPLERS)
    parser.add_argument("--speeds", default="1.5,2,3,5")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--wall-clock", action="store_true")
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()

    environment.prepare()
    from contextlib import nullcontext

    from measure.sampling import Case, batch_of, sample
    from measure.subjects import load

    runs: list[Ended] = []
    for name in options.models.split(","):
        subject = load(name)
        with nullcontext() if options.wall_clock else counted_in_blocks(subject.depth):
            for sampler in options.samplers.split(","):
                case = Case(options.steps, sampler)
                for seed in range(400, 400 + options.seeds):
                    reference = sample(subject.patcher, subject, case, batch_of(subject, 1, seed)).latents
                    for speed in options.speeds.split(","):
                        runs.append(run(subject, case, seed, reference, float(speed)))
                print(table([r for r in runs if (r.model, r.sampler) == (name, sampler)]), flush=True)
    unit = "wall-clock" if options.wall_clock else "blocks of the real model's depth"
    lines = [
        f"Speeds asked for and got, {options.steps} steps, {options.seeds} seeds, one sample a run; time in {unit}.",
        "",
        table(runs),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    stem = "speed-wall-clock" if options.wall_clock else "speed"
    record = {"versions": environment.versions(), "steps": options.steps, "runs": [asdict(each) for each in runs]}
    (options.out / f"{stem}.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / f"{stem}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
