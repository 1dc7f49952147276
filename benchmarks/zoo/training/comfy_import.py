"""Make ComfyUI's `comfy` package importable outside its server, on the CPU or on a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free for the next ones. Returned to the system and faulted in again at every step,
    it cost as much time as the arithmetic where page faults are dear (virtual machines)."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own habits
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_top_pad, 2**28)


def import_comfy(cpu: bool = True, comfyui: str | None = None) -> None:
    """Put a ComfyUI tree first on `sys.path`, this project last, and import ComfyUI's command line options.

    Args:
        cpu: run ComfyUI with `--cpu`.
        comfyui: the tree; defaults to the environment variable COMFYUI_PATH, then to the one `dev.py` installs.

    Raises:
        FileNotFoundError: when there is no ComfyUI tree there.
    """
    keep_freed_memory()
    if "comfy.cli_args" in sys.modules:
        return
    tree = Path(comfyui or os.environ.get("COMFYUI_PATH") or PROJECT / ".dev" / "ComfyUI")
    if not (tree / "comfy").is_dir():
        raise FileNotFoundError(f"no ComfyUI in {tree}: run `python dev.py setup`, or set COMFYUI_PATH to its folder")
    if str(tree) not in sys.path:
        sys.path.insert(0, str(tree))
    if str(PROJECT) not in sys.path:
        sys.path.append(str(PROJECT))  # last: it has a folder called `nodes`, as ComfyUI has a module
    argv, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if cpu else []), "--use-pytorch-cross-attention"]
    try:
        # comfy.cli_args reads sys.argv only if parsing was enabled before its first import
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = argv
