"""Is a set of SpeCa's pictures as good a set as the uncached one, likeness apart? On the small DiT.

    python dev.py study distribution [--samples 2000] [--steps 50] [--cfg 1.5] [--again SpeCa]

A small classifier is trained on the emoji (a minute on a CPU; kept in `benchmarks/out`). For each setting: *accuracy*,
the share of pictures recognised as the class that was asked for, and the Frechet distance of the classifier's
features to those of as many training pictures, and to those of the uncached pictures. Settings: uncached; SpeCa at the
thresholds that give 2x, 3x and 5x (computed for DiT-XL/2's 28 blocks, found on a few samples first); and as many plain
steps as give the same speed. Uncached pictures from other seeds show how far two equal sets are apart. `--again SpeCa`
makes only the rows anew whose name begins so, and keeps the others, if the uncached pictures come out as they did.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import environment

OUT = environment.BENCHMARKS / "out"
FEATURES = 128


class Classifier(nn.Module):
    """A convolutional network over (B, 3, 32, 32) in [-1, 1]; its features are what comes before the last layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 32, 64, FEATURES)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                nn.BatchNorm2d(b),
                nn.ReLU(),
                nn.Conv2d(b, b, 3, stride=2, padding=1),
                nn.BatchNorm2d(b),
                nn.ReLU(),
            )
            for a, b in itertools.pairwise(widths)
        )
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, 128)."""
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def real_pictures(classes: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """The training distribution: (labels (B,), generator) -> (B, 3, 32, 32) in [-1, 1]."""
    from zoo.emoji_pack.judge import references
    from zoo.training.emoji import pictures

    sprites = references(classes)
    return lambda labels, generator: pictures(sprites, labels, generator)


def train_classifier(draw: Callable[[Tensor, torch.Generator], Tensor], classes: int, steps: int = 400) -> Classifier:
    """Seeded; a little noise on the pictures keeps it from judging by single pixels."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = Classifier(classes).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for step in range(steps):
        labels = torch.randint(classes, (64,), generator=generator)
        x = draw(labels, generator)
        x = x + 0.1 * torch.rand(64, 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
        loss = F.cross_entropy(network(x), labels, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"classifier: step {step + 1}/{steps}, loss {loss.item():.3f}", flush=True)
    return network.eval()


def classifier(draw: Callable[[Tensor, torch.Generator], Tensor], classes: int, fresh: bool) -> Classifier:
    path = OUT / f"classifier-{classes}.pt"
    if path.is_file() and not fresh:
        network = Classifier(classes)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()
    network = train_classifier(draw, classes)
    OUT.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return network


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two sets of features (N, D), (M, D)."""
    import numpy
    from scipy.linalg import sqrtm

    x, y = a.double().numpy(), b.double().numpy()
    mean = x.mean(axis=0) - y.mean(axis=0)
    cov_x, cov_y = numpy.cov(x, rowvar=False), numpy.cov(y, rowvar=False)
    # The trace of the root of the product, without roots of a matrix that is not symmetric.
    root_x = numpy.real(sqrtm(cov_x))
    eigenvalues = numpy.linalg.eigvalsh(root_x @ cov_y @ root_x)
    cross = numpy.sqrt(eigenvalues.clip(min=0)).sum()
    return float(mean @ mean + numpy.trace(cov_x) + numpy.trace(cov_y) - 2 * cross)


@torch.inference_mode()
def judged(network: Classifier, pictures: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """(accuracy, features (N, 128)) of pictures (N, 3, 32, 32) in [-1, 1]."""
    features = torch.cat([network.features(part) for part in pictures.clamp(-1, 1).split(200)])
    right = network.head(features).argmax(dim=1) == labels
    return float(right.float().mean()), features


def threshold_for(subject: Any, case: Any, speed: float, native: int) -> float:
    """SpeCa's threshold for a computed speedup, by bisection on a few samples, which its speed grows with."""
    from measure.quality import joint_speedup
    from measure.sampling import batch_of
    from methods.speca import SpeCa

    low, high = math.log(1e-3), math.log(10.0)
    batch = batch_of(subject, 12, first_seed=50_000)
    for _ in range(7):
        middle = (low + high) / 2
        run = SpeCa((("threshold", math.exp(middle)),)).run(subject, case, batch, native)
        if joint_speedup(run.costs, subject.depth) < speed:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def generate(setting: Any, subject: Any, case: Any, n: int, first_seed: int, native: int, size: int) -> tuple:
    """(latents (N, ...), labels (N,), computed speedup, seconds)."""
    from measure.quality import joint_speedup
    from measure.sampling import Batch

    latents, labels, costs = [], [], []
    began = time.perf_counter()
    for start in range(0, n, size):
        seeds = range(first_seed + start, first_seed + min(start + size, n))
        batch = Batch(tuple(seeds), tuple(seed % subject.n_classes for seed in seeds))
        run = setting.run(subject, case, batch, native)
        latents.append(run.latents)
        labels += batch.labels
        costs += run.costs
    return torch.cat(latents), torch.tensor(labels), joint_speedup(costs, subject.depth), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dit", help="dit, or flux")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=1.5, help="the paper's, for DiT")
    parser.add_argument("--speeds", default="2,3,5")
    parser.add_argument("--fresh", action="store_true", help="train the classifier again")
    parser.add_argument("--again", metavar="NAME", help="only these rows, the others from the last time")
    parser.add_argument("--out", type=Path, default=environment.RESULTS)
    options = parser.parse_args()
    environment.prepare()
    from measure.sampling import Case, batch_of
    from measure.subjects import load
    from methods.fewer_steps import Uncached
    from methods.speca import SpeCa

    subject = load(options.model)
    case = Case(options.steps, cfg=options.cfg)
    draw = real_pictures(subject.n_classes)
    network = classifier(draw, subject.n_classes, options.fresh)
    labels = torch.arange(options.samples) % subject.n_classes
    real = draw(labels, torch.Generator().manual_seed(1))
    accuracy, real_features = judged(network, real, labels)
    rows: list[dict[str, Any]] = [{"setting": "training pictures", "accuracy": accuracy}]
    native = Uncached().run(subject, case, batch_of(subject, 1)).costs[0].native

    settings: list[tuple[str, Any, int]] = [
        ("uncached", Uncached(), 0),
        ("uncached, other seeds", Uncached(), 1_000_000),
    ]
    for speed in (float(text) for text in options.speeds.split(",")):
        threshold = round(threshold_for(subject, case, speed, native), 4)
        settings.append((f"SpeCa, threshold {threshold:g}", SpeCa((("threshold", threshold),)), 0))
        steps = round(options.steps / speed)
        settings.append((f"{steps} plain steps", Uncached(steps), 0))

    kept: dict[str, dict[str, Any]] = {}
    if options.again:
        before = json.loads((options.out / "distribution.json").read_text())
        kept = {row["setting"]: {"version": before["versions"]["speca"], **row} for row in before["rows"]}
    uncached_features: Tensor | None = None
    for name, setting, first_seed in settings:
        if name in kept and uncached_features is not None and not name.startswith(options.again):
            rows.append(kept[name])
            continue
        latents, labels, speed, seconds = generate(
            setting, subject, case, options.samples, first_seed, native, options.batch
        )
        accuracy, features = judged(network, latents, labels)
        uncached_features = features if uncached_features is None else uncached_features
        rows.append(
            {
                "setting": name,
                "speedup": speed,
                "accuracy": accuracy,
                "frechet_to_training": frechet_distance(features, real_features),
                "frechet_to_uncached": frechet_distance(features, uncached_features),
                "seconds": seconds,
                "version": environment.commit(),
            }
        )
        if name in kept and name == settings[0][0] and not same_pictures(kept[name], rows[-1]):
            sys.exit(f"other uncached pictures than last time: {kept[name]}; run it without --again")
        print(rows[-1], flush=True)
    text = table(rows, subject.name, case, options.samples)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "distribution.md").write_text(text + "\n")
    record = {"command": " ".join(sys.argv[1:]), "versions": environment.versions(), "rows": rows}
    (options.out / "distribution.json").write_text(json.dumps(record, indent=1) + "\n")


def same_pictures(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows can be of the same pictures and the same classifier."""
    return all(math.isclose(one[key], other[key], rel_tol=1e-3) for key in ("accuracy", "frechet_to_training"))


def table(rows: Sequence[dict[str, Any]], model: str, case: Any, samples: int) -> str:
    lines = [
        f"{samples} pictures per setting, small {model}, {case.steps} euler steps, guidance {case.cfg:g}. Frechet "
        "distance in the features of a classifier trained on the same emoji; lower is better.",
        "",
        "| | speedup, computed | class accuracy | distance to training pictures | distance to uncached |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if "speedup" not in row:
            lines.append(f"| {row['setting']} | | {row['accuracy']:.1%} | | |")
            continue
        lines.append(
            f"| {row['setting']} | {row['speedup']:.2f}x | {row['accuracy']:.1%} "
            f"| {row['frechet_to_training']:.3f} | {row['frechet_to_uncached']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
