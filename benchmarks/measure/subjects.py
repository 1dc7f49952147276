"""The models that are measured: the small trained ones, and tiny ones with random weights to try the plumbing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Conditioning = list[list[Any]]

REAL_DEPTHS = {"flux": 57, "hunyuan_video": 60, "dit": 28}
"""Blocks of FLUX.1-dev (19 double, 38 single), HunyuanVideo (20, 40) and DiT-XL/2."""

EMOJI = ("flux", "dit", "hunyuan_video")
"""The three models in which a class is one drawing: the easy end, for the tests and the demo."""


@dataclass(frozen=True)
class Subject:
    """A model ready to sample.

    depth: blocks of the real model of this architecture, for computed speedups. blocks: this one's own.
    latent_shape: of one sample. cfg: the guidance scale it is used with when guidance is on.
    conditioning: class numbers -> (positive, negative), one row per sample.
    picture: latents (B, ...) -> pictures (B, ...) in [0, 1].
    """

    name: str
    patcher: Any
    depth: int
    blocks: int
    latent_shape: tuple[int, ...]
    n_classes: int
    cfg: float
    conditioning: Callable[[Sequence[int]], tuple[Conditioning, Conditioning]]
    picture: Callable[[Tensor], Tensor]
    class_names: tuple[str, ...] = ()
    weights: str = "random"
    """First characters of the SHA-256 of the model's file: figures of other weights are other figures."""


class SubjectMissingError(Exception):
    """A trained model's file is not there. The message says which, and how to make it."""


def load(name: str) -> Subject:
    """A subject by name: one of `EMOJI`, of the zoo, or "tiny_" and a name of tests/tiny_models.py.

    Raises SubjectMissingError if its weights are not there.
    """
    if name.startswith("tiny_"):
        return _tiny(name)
    if name == "dit":
        return _trained_dit()
    if name in EMOJI:
        return _trained_emoji(name)
    return _of_zoo(name)


def of_zoo() -> tuple[str, ...]:
    """The zoo's models whose weights are there, but for those that the rule is not to be chosen on."""
    from zoo.specs import UNSEEN, ZOO

    return _with_weights(name for name in ZOO if name not in UNSEEN)


def unseen() -> tuple[str, ...]:
    """Those that were measured for the first time when the rule was fixed."""
    from zoo.specs import UNSEEN

    return _with_weights(UNSEEN)


def _with_weights(names: Iterable[str]) -> tuple[str, ...]:
    from zoo.build import path_of

    return tuple(name for name in names if path_of(name).is_file())


def trained() -> tuple[str, ...]:
    """The zoo's models whose weights are there, then the three emoji models."""
    return (*of_zoo(), *EMOJI)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def pixels(latents: Tensor) -> Tensor:
    """Pixel-space latents in [-1, 1] -> pictures in [0, 1]."""
    return ((latents.float() + 1) / 2).clamp(0, 1)


def _own_blocks(patcher: Any) -> int:
    from speca.adapters import recognise

    return recognise(patcher.model.diffusion_model).n_blocks


def _tiny(name: str) -> Subject:
    """Random weights: nothing about quality can be read off its figures."""
    import tiny_models

    architecture = name.removeprefix("tiny_")
    overrides = {"depth": 2, "depth_single_blocks": 4} if architecture in ("flux", "hunyuan_video") else {}
    tiny = tiny_models.build(architecture, **overrides)
    spec = tiny_models.SPECS[architecture]

    def conditioning(labels: Sequence[int]) -> tuple[Conditioning, Conditioning]:
        rows = [spec.prompt.encode(100 + 10 * label)[0] for label in labels]
        options = dict(rows[0][1])
        if options.get("pooled_output") is not None:
            options["pooled_output"] = torch.cat([o["pooled_output"] for _, o in rows])
        negative = spec.prompt.encode(900)
        return [[torch.cat([features for features, _ in rows]), options]], negative

    return Subject(
        name=name,
        patcher=tiny.model_patcher,
        depth=REAL_DEPTHS.get(architecture, 28),
        blocks=_own_blocks(tiny.model_patcher),
        latent_shape=tuple(spec.latent[1:]),
        n_classes=8,
        cfg=3.0,
        conditioning=conditioning,
        picture=pixels,
    )


def _trained_emoji(name: str) -> Subject:
    from zoo.emoji_pack import models

    path = models.FILES[name]
    if not path.is_file():
        raise SubjectMissingError(f"there is no {path.name} in benchmarks/zoo/models: run `python dev.py train {name}`")
    patcher = models.load(path, torch.float32)
    config = models.read_config(path)

    def conditioning(labels: Sequence[int]) -> tuple[Conditioning, Conditioning]:
        # One motion per class, all of them in use.
        motions = [label % len(config.motions) for label in labels] if config.motions else None
        return models.conditioning(name, list(labels), motions), models.null_conditioning(name)

    return Subject(
        name=name,
        patcher=patcher,
        depth=REAL_DEPTHS[name],
        blocks=_own_blocks(patcher),
        latent_shape=tuple(models.latent_shape(name)[1:]),
        n_classes=len(config.classes),
        cfg=2.5,
        conditioning=conditioning,
        picture=pixels,
        class_names=tuple(config.classes),
        weights=_digest(path),
    )


def _trained_dit() -> Subject:
    from speca.dit.comfy_model import class_conditioning, load_dit
    from zoo.emoji_pack.models import MODELS

    path = MODELS / "dit-emoji.safetensors"
    if not path.is_file():
        raise SubjectMissingError(f"there is no {path.name} in benchmarks/zoo/models: run `python dev.py train dit`")
    patcher = load_dit(path, torch.float32)
    network = patcher.model.diffusion_model
    side = network.input_size

    def conditioning(labels: Sequence[int]) -> tuple[Conditioning, Conditioning]:
        return class_conditioning(list(labels)), class_conditioning([-1])

    return Subject(
        name="dit",
        patcher=patcher,
        depth=REAL_DEPTHS["dit"],
        blocks=_own_blocks(patcher),
        latent_shape=(network.in_channels, side, side),
        n_classes=network.num_classes,
        cfg=2.5,
        conditioning=conditioning,
        picture=pixels,
        class_names=tuple(patcher.model.known_class_names or ()),
        weights=_digest(path),
    )


def _of_zoo(name: str) -> Subject:
    from zoo import build
    from zoo.specs import ZOO

    if name not in ZOO:
        raise SubjectMissingError(f"there is no model {name!r}; choose among {', '.join((*ZOO, *EMOJI))}")
    spec, path = ZOO[name], build.path_of(name)
    if not path.is_file():
        raise SubjectMissingError(f"there is no {path.name} in benchmarks/zoo/models: run `python dev.py train {name}`")
    patcher, condition = build.load(name)
    classes = tuple(build.facts_of(name)["classes"])

    def conditioning(labels: Sequence[int]) -> tuple[Conditioning, Conditioning]:
        return build.conditionings(condition, list(labels) if classes else [condition.null] * len(labels))

    return Subject(
        name=name,
        patcher=patcher,
        depth=spec.depth,
        blocks=_own_blocks(patcher),
        latent_shape=spec.latent_shape,
        n_classes=max(len(classes), 1),
        cfg=2.5,
        conditioning=conditioning,
        picture=lambda latents: pixels(build.to_pictures(spec, latents)),
        class_names=classes,
        weights=_digest(path),
    )
