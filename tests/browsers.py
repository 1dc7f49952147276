"""What the tests of pages need of a browser: a Chromium, what it is told, and the newer of two frontends."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

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


def frontend_arguments(newer: bool) -> list[str]:
    """ComfyUI's, for the newer frontend or for its own; skips the test where there is no newer one."""
    if newer and not (NEWER_FRONTEND / "index.html").is_file():
        pytest.skip("no newer frontend: run `python dev.py setup`")
    return ["--front-end-root", str(NEWER_FRONTEND)] if newer else []


@contextmanager
def opened_page(chromium: str, profile: Path, width: int, height: int) -> Iterator[Any]:
    """A page of a browser with a profile of its own."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=chromium,
            headless=True,
            viewport={"width": width, "height": height},
            args=list(FLAGS),
        )
        yield context.pages[0]
        context.close()
