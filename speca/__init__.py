"""SpeCa: forecast-then-verify caching for diffusion transformers (arXiv 2509.11628), for ComfyUI.

A call passes from left to right: `call` (what is asked), `stream` (whose it is), `policy` (compute or speculate), `draft`
(what anchors say; `forecast` and `history` below it), `verify` (how wrong that is), `answer` (what is returned), `tally`
and `events` (what is told). `session` is the loop over these.

Pure torch: all of these, `config`, `path`, `schedule`, `words`. ComfyUI: `attach`, `adapters`, `dit`. Nothing is imported
here, so that the maths works without ComfyUI.
"""
