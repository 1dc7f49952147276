"""What the tests of pages need of a browser: a Chromium, what it is told, and the newer of two frontends."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import comfy_env

# As root and without a network of its own, Chromium needs to be told.
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def _dev() -> ModuleType:
    """`dev.py`, which knows what it set up. The root must not be on the path: its `nodes` would hide ComfyUI's."""
    spec = importlib.util.spec_from_file_location("dev_for_browsers", comfy_env.ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_DEV = _dev()
NEWER_FRONTEND = _DEV.FRONTEND
FRONTEND_SETTINGS = _DEV.FRONTEND_SETTINGS
find_chromium = _DEV.find_chromium


def has_newer_frontend() -> bool:
    return (NEWER_FRONTEND / "index.html").is_file()
