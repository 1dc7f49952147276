"""The nodes for DiT, which ComfyUI itself does not have: loader, class label, empty latent."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..speca.dit.comfy_model import choose_labels, class_conditioning, dit_of, empty_latent, load_dit
from ..speca.dit.labels import NULL_LABEL, imagenet_classes, numbered
from .inputs import advanced, schema

FOLDER = "diffusion_models"
CATEGORY = "SpeCa/DiT"

SHIPPED = Path(__file__).resolve().parent.parent / "benchmarks" / "zoo" / "models" / "dit-emoji.safetensors"
GOLDEN_RETRIEVER = "207: golden retriever"
SHIPPED_NAME = "dit-emoji (comes with SpeCa)"

WEIGHT_DTYPES = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


class SpeCaDiTLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        files = folder_paths.get_filename_list(FOLDER)
        shipped = SHIPPED.is_file()
        names = [*files, *([SHIPPED_NAME] if shipped else [])]
        return schema(
            node_id="SpeCaDiTLoader",
            display_name="Load DiT",
            category=CATEGORY,
            search_aliases=["dit", "dit-xl", "imagenet", "diffusion transformer", "load diffusion model"],
            description="Loads a class-conditional DiT (Peebles and Xie), such as DiT-XL/2 for ImageNet, from the "
            "authors' checkpoint or from diffusers' weights. Size, patch and classes are read off the file.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=names,
                    default=next((name for name in names if "dit" in name.lower()), None),
                    tooltip="A file in models/diffusion_models: .safetensors, or the authors' .pt. A file that is not "
                    "a DiT is refused with the reason, and code inside a .pt file is never run."
                    + (" dit-emoji is a small one to try: 32x32 pixels, emoji instead of ImageNet." if shipped else ""),
                ),
                advanced(
                    io.Combo.Input(
                        "weight_dtype",
                        options=list(WEIGHT_DTYPES),
                        default="default",
                        tooltip="How weights are kept. default: ComfyUI's choice for your device. fp32 gives the "
                        "pictures of the paper most closely and needs twice the memory of fp16; fp8 needs half of it, "
                        "and fine detail changes.",
                    )
                ),
            ],
            outputs=[io.Model.Output(tooltip="The DiT, ready for SpeCa, LoRAs and any sampler.")],
        )

    @classmethod
    def execute(cls, model_name, weight_dtype="default") -> io.NodeOutput:
        path = SHIPPED if model_name == SHIPPED_NAME else folder_paths.get_full_path_or_raise(FOLDER, model_name)
        return io.NodeOutput(load_dit(path, WEIGHT_DTYPES[weight_dtype]))


class SpeCaDiTClass(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        imagenet = numbered(imagenet_classes())
        return schema(
            node_id="SpeCaDiTClass",
            display_name="DiT Class Label",
            category=CATEGORY,
            search_aliases=["dit prompt", "imagenet class", "class conditioning"],
            description="Chooses what a DiT draws: one class, or one for each picture of a batch.",
            inputs=[
                io.Combo.Input(
                    "imagenet_class",
                    optional=True,
                    options=imagenet,
                    default=GOLDEN_RETRIEVER,
                    tooltip="What the pictures show: one of ImageNet's 1000 classes. Type in the list to search it. "
                    "Not used when something stands in 'classes'.",
                ),
                io.String.Input(
                    "classes",
                    optional=True,
                    default="",
                    placeholder="or type several: 207, 88, golden retriever",
                    tooltip="What each picture of the batch shows: class numbers and names, separated by commas. The "
                    "first class makes the first picture, and so on; a batch with more pictures starts over. 'null' is "
                    "no class: anything the model knows.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect a DiT trained on other classes than ImageNet's to choose among its own by name.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The classes."),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="No class. With a cfg above 1, pictures move away from it: clearer objects, less variety.",
                ),
                io.Int.Output(
                    display_name="count",
                    tooltip="How many classes there are. Connect it to batch_size for one picture of each.",
                ),
            ],
        )

    @classmethod
    def execute(cls, imagenet_class=GOLDEN_RETRIEVER, classes="", model=None) -> io.NodeOutput:
        labels = choose_labels(classes, imagenet_class, None if model is None else dit_of(model))
        return io.NodeOutput(class_conditioning(labels), class_conditioning([NULL_LABEL]), len(labels))


class SpeCaDiTLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Input:
            return advanced(
                io.Int.Input(
                    name,
                    default=0,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip=f"The picture's {name} in pixels. 0: the size the model was trained on, which gives the "
                    "best pictures (256 where the file does not say); at other sizes shapes repeat or stretch.",
                )
            )

        return schema(
            node_id="SpeCaDiTLatent",
            display_name="Empty DiT Latent",
            category=CATEGORY,
            search_aliases=["dit size", "empty latent image"],
            description="An empty latent in the shape a DiT was trained on.",
            inputs=[
                io.Model.Input("model", tooltip="The DiT, which decides channels and size."),
                io.Int.Input(
                    "batch_size",
                    optional=True,
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="How many pictures are made at once. More take more memory and time.",
                ),
                side("width"),
                side("height"),
            ],
            outputs=[io.Latent.Output(tooltip="The empty latent, for the sampler.")],
        )

    @classmethod
    def execute(cls, model, batch_size=1, width=0, height=0) -> io.NodeOutput:
        return io.NodeOutput(empty_latent(dit_of(model), batch_size, width, height))


NODES = [SpeCaDiTLoader, SpeCaDiTClass, SpeCaDiTLatent]
