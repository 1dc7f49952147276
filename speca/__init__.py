"""SpeCa: forecast-then-verify caching for diffusion transformers (arXiv 2509.11628), for ComfyUI.

A call passes from left to right: `call` (what is asked), `stream` (whose it is, and what that knows), `policy` (compute
or speculate), `draft` (what anchors say; `forecast` and `history` below it), `verify` (how wrong that is), `answer`
(what is returned), `tally`, `words` and `events` (what is told). `session` is the loop over these; `schedule` and
`path` tell what an error costs where.

All of these are pure torch. ComfyUI: `comfyui` (how a run and a call get here), `adapters`, `dit`. Nothing is imported
here, so that the maths works without ComfyUI.
"""
