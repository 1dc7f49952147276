"""Class names: ImageNet's list, and finding a class by what a person types."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

NULL_LABEL = -1
"""Stands for the null class (no class at all) until the model, and with it the null class's number, is known."""

_NULL_WORDS = {"null", "none", "unconditional"}
_SUGGESTIONS = 5


class UnknownClassError(ValueError):
    """What was typed is not a class of the model. The message says what to type instead."""


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k, in the order of their labels."""
    lines = (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def numbered(names: Sequence[str]) -> list[str]:
    """Each class as a list offers it: "207: golden retriever". The number makes equal names distinct."""
    return [f"{label}: {name}" for label, name in enumerate(names)]


def parse_labels(text: str, names: Sequence[str] | None, num_classes: int | None) -> list[int]:
    """The labels of a list of classes, as a person types it: "207, 88, golden retriever".

    Args:
        text: classes separated by commas, semicolons or line breaks. Each is a number, a name, both as `numbered`
            writes them, or "null" for the null class. One name alone may contain commas.
        names: the model's class names in the order of their labels; None if it has none.
        num_classes: how many classes the model has; None if no model is known.

    Raises:
        UnknownClassError: for a number out of range or an unknown or ambiguous name.
    """
    alone = _find_name(text.strip(), names)
    if alone is not None:
        return [alone]
    entries = [entry.strip() for entry in re.split(r"[,;\n]", text)]
    labels = [_parse_label(entry, names, num_classes) for entry in entries if entry]
    if not labels:
        raise UnknownClassError(f"No class was given. Type {_examples(names, num_classes)}.")
    return labels


def _parse_label(entry: str, names: Sequence[str] | None, num_classes: int | None) -> int:
    by_name = _find_name(entry, names)
    if by_name is not None:
        return by_name
    if entry.casefold() in _NULL_WORDS:
        return NULL_LABEL
    match = re.fullmatch(r"(-?\d+)(?:\s*:\s*(.+))?", entry)
    if match is None:
        raise UnknownClassError(_unknown_name(entry, names, num_classes))
    label, name = int(match[1]), match[2]
    if label < 0 or (num_classes is not None and label >= num_classes):
        upper = "" if num_classes is None else f" to {num_classes - 1}"
        raise UnknownClassError(
            f"There is no class {label}: this model's classes are numbered 0{upper}. "
            f"Type {_examples(names, num_classes)}."
        )
    if name is not None and names is not None and names[label].casefold() != name.casefold():
        raise UnknownClassError(
            f"Class {label} of this model is '{names[label]}', not '{name}'. Type {_examples(names, num_classes)}."
        )
    return label


def _find_name(entry: str, names: Sequence[str] | None) -> int | None:
    """The label of a name; exact spelling decides between names that differ in case alone ("Cardigan" is a dog)."""
    if names is None:
        return None
    folded = entry.casefold()
    found = [label for label, name in enumerate(names) if name.casefold() == folded]
    exact = [label for label in found if names[label] == entry]
    found = exact or found
    if len(found) > 1:
        choices = " or ".join(f"{label} ({names[label]})" for label in found)
        raise UnknownClassError(f"'{entry}' is the name of {len(found)} classes. Type the number: {choices}.")
    return found[0] if found else None


def _unknown_name(entry: str, names: Sequence[str] | None, num_classes: int | None) -> str:
    if names is None:
        return (
            f"'{entry}' is not a number, and the model's file does not name its classes. "
            f"Type {_examples(names, num_classes)}."
        )
    folded = {name.casefold(): label for label, name in enumerate(names)}
    near = [name for name in folded if entry.casefold() in name]
    near += [name for name in difflib.get_close_matches(entry.casefold(), folded, n=_SUGGESTIONS) if name not in near]
    if not near:
        return f"'{entry}' is not a class of this model. Type {_examples(names, num_classes)}."
    offered = ", ".join(f"{names[folded[name]]} ({folded[name]})" for name in near[:_SUGGESTIONS])
    return f"'{entry}' is not a class of this model. Near it are: {offered}."


def _examples(names: Sequence[str] | None, num_classes: int | None) -> str:
    last = (num_classes or 1000) - 1
    if names is None:
        return f"a number from 0 to {last}, or several with commas"
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"a number from 0 to {last} or a name such as {shown}; separate several with commas"
