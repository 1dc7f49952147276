"""SpeCa on ComfyUI's models. Not called `comfy`, which is ComfyUI's own package."""

KEY = "speca"
"""The name of everything that SpeCa leaves on a model or in a run's options."""
