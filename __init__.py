"""SpeCa for ComfyUI. ComfyUI calls `comfy_entrypoint`; nothing is imported before, so that tests can load this file."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import SpeCaExtension

    return SpeCaExtension()
