"""Puts a real ComfyUI and this project's `speca` on the import path, and says which versions they are.

Call `prepare()` before importing `comfy`, `speca` or `methods`. The benchmark's own packages are found because
`benchmarks` is on the path: `dev.py` puts it there, or the script lies in it.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

# Small models on few cores: one thread per process is faster, and timings of several methods stay comparable.
os.environ.setdefault("OMP_NUM_THREADS", "1")

BENCHMARKS = Path(__file__).resolve().parent.parent
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"

# The tests' way to a real ComfyUI is the benchmark's too.
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))

import comfy_env  # noqa: E402


def prepare(*, gpu: bool = False) -> None:
    """Make `import comfy`, `import speca` and `import speca_pack` work. Exits with a sentence without a ComfyUI."""
    import logging

    if not comfy_env.prepare(gpu=gpu):
        sys.exit("There is no ComfyUI: run `python dev.py setup`, or set COMFYUI_PATH to its folder.")
    if not gpu:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # EasyCache and SpeCa write a line for every run.
    logging.getLogger().setLevel(logging.ERROR)
    commit()


@functools.cache
def commit() -> str:
    """The commit this process has loaded, asked for once: the checkout may move on while it measures."""
    import subprocess

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    changed = bool(git("status", "--porcelain", "--untracked-files=no", "--", "speca"))
    return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")


def versions() -> dict[str, str]:
    """What stands beside every figure: versions of everything that took part."""
    import platform

    import comfyui_version
    import numpy
    import torch

    return {
        "speca": commit(),
        "comfyui": comfyui_version.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": str(torch.get_num_threads()),
    }
