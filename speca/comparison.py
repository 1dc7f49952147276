"""How far apart two results are, and how fast each was: the figures of a comparison, in words and as JSON."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .events import CallRecord, RunRecord
from .witness import Witness
from .words import counted, why_nothing_skipped

VERSION = 1

# The structural similarity of a long video takes longer than the video; so many of its frames are measured.
MAX_SSIM_FRAMES = 9
# A side of the window of Wang et al. (2004), section III: a Gaussian of sigma 1.5.
SSIM_WINDOW = 11
NO_PICTURES = "there are no pictures: no vae that decodes any is connected"
NO_SSIM = "neither scikit-image nor torchmetrics is installed"


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Of the differences, per sample: (B, ...) x (B, ...) -> (B,) in fp64."""
    return (a.cpu().double() - b.cpu().double()).flatten(1).square().mean(dim=1)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1] with that mean square error; infinite for 0."""
    return math.inf if error == 0 else -10 * math.log10(error)


def is_picture(decoded: Tensor) -> bool:
    """(B, H, W, C), or (B, T, H, W, C) of a video; sound has fewer dimensions."""
    return decoded.ndim in (4, 5) and decoded.shape[-1] in (1, 3, 4)


def relative_error(samples: Sequence[Tensor], references: Sequence[Tensor]) -> float:
    """|x - r| / |r| over all tensors of a latent together. 0 for equal ones, whatever they are."""
    pairs = [(x.cpu().double(), r.cpu().double()) for x, r in zip(samples, references, strict=True)]
    difference = math.sqrt(sum((x - r).square().sum().item() for x, r in pairs))
    norm = math.sqrt(sum(r.square().sum().item() for _, r in pairs))
    return 0.0 if difference == 0 else difference / norm if norm else math.inf


def ssim(pictures: Tensor, references: Tensor) -> tuple[float | None, str]:
    """Mean structural similarity of (N, H, W, C) in [0, 1] with the window of Wang et al. (2004), by scikit-image or by
    torchmetrics, which counts the border too; and by which, or why not."""
    n = pictures.shape[0]
    if min(pictures.shape[1:3]) < SSIM_WINDOW:
        return None, f"pictures under {SSIM_WINDOW} pixels have none"
    picked = torch.linspace(0, n - 1, min(n, MAX_SSIM_FRAMES)).round().long()
    a, b = (x[picked].float().cpu() for x in (pictures, references))
    of = f", {len(picked)} of {n} pictures" if len(picked) < n else ""
    by_skimage = functools.partial(ssim_by_skimage, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    for package, measure in (("scikit-image", by_skimage), ("torchmetrics", _by_torchmetrics)):
        try:
            return measure(a, b), f"{package} {importlib.metadata.version(package)}{of}"
        except ImportError:
            continue
    return None, NO_SSIM


def ssim_by_skimage(pictures: Tensor, references: Tensor, **window: Any) -> float:
    """Mean over (N, H, W, C) in [0, 1], on the CPU; scikit-image's 7 x 7 window unless told. Raises ImportError."""
    from skimage.metrics import structural_similarity

    pairs = zip(pictures.numpy(), references.numpy(), strict=True)
    values = [float(structural_similarity(a, b, channel_axis=-1, data_range=1.0, **window)) for a, b in pairs]
    return sum(values) / len(values)


def _by_torchmetrics(a: Tensor, b: Tensor) -> float:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return float(structural_similarity_index_measure(a.movedim(-1, 1), b.movedim(-1, 1), sigma=1.5, data_range=1.0))


@dataclass(frozen=True)
class Figures:
    """A comparison in numbers. psnr in dB, ssim: None where there were no pictures, or no means (`ssim_by` says which).

    kept: the uncached run was an earlier one, and its seconds are of then. latent_error: relative L2.
    """

    uncached_seconds: float
    speca_seconds: float
    kept: bool
    latent_error: float
    psnr: float | None = None
    ssim: float | None = None
    ssim_by: str = NO_PICTURES

    @property
    def speedup(self) -> float | None:
        return self.uncached_seconds / self.speca_seconds if self.speca_seconds > 0 else None


def summary(figures: Figures, record: RunRecord | None) -> str:
    """`2.1x: 4.03 s instead of 8.46 s. PSNR 38.2 dB, SSIM 0.974, latent error 0.031. 28 calls: 9 full, ...`"""
    speed = "not timed" if figures.speedup is None else f"{figures.speedup:.2f}x"
    before = " (an earlier run)" if figures.kept else ""
    sentences = [f"{speed}: {figures.speca_seconds:.2f} s instead of {figures.uncached_seconds:.2f} s{before}"]
    quality = [] if figures.psnr is None else [f"PSNR {decibels(figures.psnr)}"]
    quality += [] if figures.ssim is None else [f"SSIM {figures.ssim:.3f}"]
    if figures.latent_error == 0:
        sentences.append(", ".join(["The same to the last digit", *quality]))
    else:
        sentences.append(", ".join([*quality, f"latent error {figures.latent_error:.3g}"]))
    return ". ".join([*sentences, *_of_run(record)]) + "."


def decibels(psnr: float) -> str:
    return "infinite" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _of_run(record: RunRecord | None) -> Iterator[str]:
    if record is None:
        return
    totals, native = record.totals, record.header.native
    if totals.calls:
        yield f"{totals.calls} calls: {counted(totals)}"
    if totals.accepted + totals.trusted == 0:
        yield f"Nothing was skipped: {native or why_nothing_skipped(record)}"
    elif native is not None:
        yield f"The rest was not skipped: {native}"


def report(figures: Figures, record: RunRecord | None, witness: Witness | None = None) -> dict[str, Any]:
    """What JSON can hold of a comparison. An infinite PSNR is the word `infinite`; what was not measured is null."""
    calls = () if record is None else record.calls
    told: dict[str, Any] = {
        "version": VERSION,
        "summary": summary(figures, record),
        "speedup": _told(figures.speedup),
        "seconds": {"uncached": _told(figures.uncached_seconds), "speca": _told(figures.speca_seconds)},
        "uncached_run": "kept from before" if figures.kept else "new",
        "psnr": _told(figures.psnr),
        "ssim": _told(figures.ssim),
        "ssim_by": figures.ssim_by,
        "latent_error": _told(figures.latent_error),
        "run": None if record is None else _run(record),
        "true_errors": None if witness is None else _true_errors(witness),
        "calls": [_call(call) for call in calls],
    }
    return told


def in_lines(told: dict[str, Any]) -> str:
    """The report as JSON that a person can read: one line for each figure, and one for each call."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in told.items() if name != "calls"]
    calls = ",\n".join(f"    {json.dumps(call)}" for call in told["calls"])
    return "{\n" + ",\n".join([*lines, f'  "calls": [\n{calls}\n  ]' if calls else '  "calls": []']) + "\n}"


def _run(record: RunRecord) -> dict[str, Any]:
    header, totals = record.header, record.totals
    return {
        "run_id": header.run_id,
        "model": header.model,
        "sampler": header.sampler,
        "steps": header.steps,
        "native": header.native,
        "calls": totals.calls,
        "full": totals.full,
        "accepted": totals.accepted,
        "trusted": totals.trusted,
        "rejected": totals.rejected,
        "settings": dict(header.settings),
    }


def _call(call: CallRecord) -> dict[str, Any]:
    """A call by its worst sample."""
    row = max(call.rows, key=lambda row: (row.outcome == call.outcome, row.error or 0.0))
    told = {"call": call.call, "step": call.step, "sigma": _told(call.sigma), "outcome": call.outcome}
    told |= {name: _told(row.figures[name]) for name in ("error", "threshold") if name in row.figures}
    seen = [row for row in call.rows if row.true is not None]
    if seen:
        worst = max(seen, key=lambda row: row.true or 0.0)
        told |= {"judged": _told(worst.judged), "true": _told(worst.true)}
    return told


def _true_errors(witness: Witness) -> dict[str, Any]:
    """Of all accepted samples of all calls."""
    errors = [error for of_call in witness.seen.values() for error in of_call]
    told: dict[str, Any] = {"accepted": len(errors), "seconds": _told(witness.clock.aside)}
    for name in ("judged", "true"):
        values = [getattr(error, name) for error in errors]
        if values:
            told[name] = {"mean": _told(sum(values) / len(values)), "worst": _told(max(values))}
    return told


def _told(value: float | None) -> float | str | None:
    """Four significant digits. JSON has no infinity and no NaN."""
    if value is None or math.isnan(value):
        return None
    return "infinite" if math.isinf(value) else float(f"{value:.4g}")
