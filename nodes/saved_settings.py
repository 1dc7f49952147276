"""Settings saved by name, as JSON in ComfyUI's user folder: `SpeCa Tune` writes them, the SpeCa node offers them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import folder_paths

from ..speca.adapters import NotThisArchitectureError
from ..speca.comfyui.tune import identity_of
from ..speca.config import SpeCaConfig

log = logging.getLogger(__name__)

NONE = "none"
VERSION = 1

# Of the machine, and what is no choice of a person's: not of what was found.
NOT_SAVED = ("cache_device", "noise_gain_limit")
FORBIDDEN = set('/\\:*?"<>|')


def folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "speca" / "settings"


def names() -> list[str]:
    """`NONE`, and what is saved, in the order of the alphabet."""
    return [NONE, *sorted((path.stem for path in folder().glob("*.json")), key=str.casefold)]


def checked(name: str) -> str:
    """`name` without spaces around it. Raises ValueError for one that no file can have."""
    name = name.strip()
    if FORBIDDEN & set(name) or name.startswith(".") or name == NONE or len(name) > 100 or not name.isprintable():
        raise ValueError(f"{name!r} is no name to save settings under: use letters, digits, spaces, '-' and '_'")
    return name


def save(name: str, config: SpeCaConfig, model: Mapping[str, Any], found: Mapping[str, Any]) -> Path:
    """Write them; what was saved under the name before is replaced. model: `identity_of`. found: for a reader."""
    settings = {key: value for key, value in config.to_json().items() if key not in NOT_SAVED}
    path = folder() / f"{checked(name)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"version": VERSION, "settings": settings, "model": dict(model), **found}
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path


def applied(name: str, config: SpeCaConfig, model: Any) -> tuple[SpeCaConfig, str | None]:
    """`config` with what is saved under `name`, and what is to be said of it: that they were found on another model.

    model: `comfy.model_base.BaseModel`. Raises ValueError where there is none of that name, or it cannot be read.
    """
    if name == NONE:
        return config, None
    path = folder() / f"{checked(name)}.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(SpeCaConfig)}
        settings = {key: value for key, value in saved["settings"].items() if key in known and key not in NOT_SAVED}
        of = dict(saved["model"])
        config = SpeCaConfig(**{**config.to_json(), **settings})
    except FileNotFoundError:
        raise ValueError(f"no settings are saved as {name!r}: choose others in saved_settings, or {NONE!r}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the settings saved as {name!r} cannot be read ({error}): delete {path}") from error
    note = _of_another_model(name, of, model)
    if note is not None:
        log.warning("SpeCa: %s", note)
    return config, note


def _of_another_model(name: str, of: Mapping[str, Any], model: Any) -> str | None:
    try:
        mine = identity_of(model)
    except NotThisArchitectureError:
        return None  # the run says that it is not cached
    if all(of.get(key) == value for key, value in mine.items()):
        return None
    return f"the settings {name!r} were found on {_named(of)}, this is {_named(mine)}: tune anew for it"


def _named(identity: Mapping[str, Any]) -> str:
    return f"{identity.get('model')} ({identity.get('n_blocks')} blocks)"
