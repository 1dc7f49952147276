"""SpeCa: forecast-then-verify caching for diffusion transformers (arXiv 2509.11628), for ComfyUI.

Pure torch: `config`, `forecast`, `verify`, `policy`, `history`, `events`, `session`.
ComfyUI: `attach`, `adapters`, `dit`. Nothing is imported here, so that the maths works without ComfyUI.
"""
