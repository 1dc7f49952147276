"""`python dev.py models`: each model class of the ComfyUI that is there, its network, what SpeCa does with it, and
which small models of it the contract suite has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import comfy_env

HEADER = ("model class", "network", "SpeCa", "tested as")
NO_ADAPTER = "no adapter: its structure, if that passes a trial"
UNET = "uncached: a U-Net has no equal blocks"


class _FoundError(Exception):
    """Carries the network's class out of a model's constructor."""


def network_of(model_config: Any) -> type | None:
    """The class of the network that `model_config`, of `comfy.supported_models`, stands for, without building one; None
    where it cannot be found out."""
    import comfy.model_base

    def found(self: Any, *args: Any, unet_model: type | None = None, **kwargs: Any) -> None:
        raise _FoundError(unet_model or (args[3] if len(args) > 3 else _usual_network()))

    native, comfy.model_base.BaseModel.__init__ = comfy.model_base.BaseModel.__init__, found
    try:
        model_config.get_model({}, "")
    except _FoundError as network:
        return network.args[0]
    except Exception:
        return None  # it reads its checkpoint first
    finally:
        comfy.model_base.BaseModel.__init__ = native
    return None


def _usual_network() -> type:
    import comfy.model_base

    return comfy.model_base.UNetModel


def rows() -> list[tuple[str, ...]]:
    import comfy.supported_models

    import contract_models
    from speca.adapters import named

    small: dict[str, list[str]] = {}
    for name in contract_models.NAMES:
        small.setdefault(contract_models.model_class(name), []).append(name)
    table = []
    for model_config in sorted(comfy.supported_models.models, key=lambda cls: cls.__name__):
        names = small.get(model_config.__name__, [])
        instance = contract_models.config_of(names[0]) if names else model_config(dict(model_config.unet_config))
        network = network_of(instance)
        architecture = None if network is None else named(network)
        how = NO_ADAPTER if architecture is None else architecture.title
        if architecture is not None and architecture.native:
            how = f"uncached: {architecture.title} {architecture.native}"
        elif network is _usual_network():
            how = UNET
        table.append((model_config.__name__, network.__name__ if network else "?", how, ", ".join(names) or "-"))
    return table


def main() -> None:
    comfy_env.prepare()
    table = [HEADER, *rows()]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    adapted = sum(row[2] != NO_ADAPTER and not row[2].startswith("uncached") for row in table[1:])
    print(f"{adapted} of {len(table) - 1} by an adapter, {sum(row[3] != '-' for row in table[1:])} in the contract")


if __name__ == "__main__":
    main()
