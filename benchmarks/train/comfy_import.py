"""Make ComfyUI's `comfy` package importable outside its server, on the CPU or on a GPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def import_comfy(cpu: bool = True, comfyui: str | None = None) -> None:
    """Put a ComfyUI tree first on `sys.path` and import its command line options.

    Args:
        cpu: run ComfyUI with `--cpu`.
        comfyui: the tree; defaults to the environment variable COMFYUI_PATH, then to the one `dev.py` installs.

    Raises:
        FileNotFoundError: when there is no ComfyUI tree there.
    """
    if "comfy.cli_args" in sys.modules:
        return
    tree = Path(comfyui or os.environ.get("COMFYUI_PATH") or PROJECT / ".dev" / "ComfyUI")
    if not (tree / "comfy").is_dir():
        raise FileNotFoundError(f"no ComfyUI in {tree}: run `python dev.py setup`, or set COMFYUI_PATH to its folder")
    if str(tree) not in sys.path:
        sys.path.insert(0, str(tree))
    argv, sys.argv = sys.argv, [sys.argv[0], *(["--cpu"] if cpu else []), "--use-pytorch-cross-attention"]
    try:
        # comfy.cli_args reads sys.argv only if parsing was enabled before its first import
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = argv
