"""Nodes for the tests' graphs: the tiny models as a loader, and a place to leave tensors for a test to look at."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from comfy_api.latest import ComfyExtension, io


def _of_tests(name: str):
    """`tests/{name}.py`: the test's own copy in its process, loaded by location in a server of its own."""
    if name not in sys.modules:
        path = Path(__file__).resolve().parent.parent / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def _tiny_models():
    return _of_tests("tiny_models")


class TinyModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyModelLoader",
            display_name="Tiny Model Loader (tests)",
            category="tests",
            inputs=[
                io.Combo.Input("name", options=list(_tiny_models().SPECS), default="flux"),
                io.Int.Input("weights_seed", default=0, min=0, max=2**31),
                io.Int.Input("batch_size", default=1, min=1, max=64),
            ],
            outputs=[
                io.Model.Output(),
                io.Latent.Output(),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(cls, name: str, weights_seed: int, batch_size: int) -> io.NodeOutput:
        tiny = _tiny_models().build(name, weights_seed, batch=batch_size)
        return io.NodeOutput(tiny.model_patcher, tiny.latent, tiny.positive, tiny.negative)


NEIGHBOURS = ("tiles", "tiles that move", "function wrapper", "cache in function wrapper", "cache in wrapper")


class TinyNeighbour(io.ComfyNode):
    """What another pack does to a model, by `tests/stand_ins.py`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyNeighbour",
            display_name="Neighbour (tests)",
            category="tests",
            inputs=[io.Model.Input("model"), io.Combo.Input("kind", options=list(NEIGHBOURS))],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, kind: str) -> io.NodeOutput:
        from comfy.patcher_extension import WrappersMP

        stand_ins = _of_tests("stand_ins")
        if kind.startswith("tiles"):
            corners = [(0, 0), (0, 2), (2, 0)]
            moving = [(2, 2), (0, 2), (2, 0), (0, 0)] if kind == "tiles that move" else [(2, 2)]
            places = lambda call: [*corners, moving[call % len(moving)]]  # noqa: E731
            return io.NodeOutput(stand_ins.tiled(model, places, size=6, at_once=2))
        if kind == "cache in function wrapper":
            return io.NodeOutput(stand_ins.cache_in_function_wrapper(model, stand_ins.Store()))
        if kind == "cache in wrapper":
            return io.NodeOutput(stand_ins.cache_in_wrapper(model, stand_ins.Store(), WrappersMP.DIFFUSION_MODEL))
        patched = model.clone()
        patched.set_model_unet_function_wrapper(
            lambda apply, args: apply(args["input"], args["timestep"], **args["c"]).clone()
        )
        return io.NodeOutput(patched)


class TinyLatentProbe(io.ComfyNode):
    """Writes a latent to the output folder and says in its `ui` where, exact to the bit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyLatentProbe",
            display_name="Latent Probe (tests)",
            category="tests",
            inputs=[io.Latent.Input("samples"), io.String.Input("name", default="latent")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: dict, name: str) -> io.NodeOutput:
        import folder_paths

        path = Path(folder_paths.get_output_directory()) / f"{name}.pt"
        torch.save(samples["samples"].cpu(), path)
        return io.NodeOutput(ui={"latent": [str(path)]})


class TinyExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyModelLoader, TinyNeighbour, TinyLatentProbe]


async def comfy_entrypoint() -> TinyExtension:
    return TinyExtension()
