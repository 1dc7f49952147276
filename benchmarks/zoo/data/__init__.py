"""What the zoo's models learn: pictures and clips from public packages, of broad classes with many members each.

`source(name)` fetches what is not there yet and returns a `Source`, which draws batches.
"""

from __future__ import annotations

from collections.abc import Callable

from .source import Source


def source(name: str) -> Source:
    """A source by the name that `zoo.specs` uses. Raises KeyError for a name that is not one of `SOURCES`."""
    return SOURCES[name]()


def _fluent() -> Source:
    from .sprites import fluent_emoji

    return fluent_emoji()


def _twitter() -> Source:
    from .sprites import twitter_emoji

    return twitter_emoji()


def _clipart() -> Source:
    from .sprites import clipart

    return clipart()


def _stamps() -> Source:
    from .sprites import stamps

    return stamps()


def _units() -> Source:
    from .sprites import wesnoth_units

    return wesnoth_units()


def _photographs() -> Source:
    from .photographs import wallpapers

    return wallpapers()


def _camera() -> Source:
    from .photographs import more_wallpapers

    return more_wallpapers()


def _landscapes() -> Source:
    from .photographs import other_photographs

    return other_photographs()


def _previews() -> Source:
    from .previews import previews

    return previews()


def _stills() -> Source:
    from .previews import stills

    return stills()


def _arcade() -> Source:
    from .games import arcade

    return arcade()


def _doom() -> Source:
    from .games import doom

    return doom()


SOURCES: dict[str, Callable[[], Source]] = {
    "fluent": _fluent,
    "clipart": _clipart,
    "stamps": _stamps,
    "units": _units,
    "photographs": _photographs,
    "arcade": _arcade,
    "doom": _doom,
    "twitter": _twitter,
    "camera": _camera,
    "landscapes": _landscapes,
    "previews": _previews,
    "stills": _stills,
}
