"""The demo's workflow as a pack without nodes, so that ComfyUI serves it and the frontend opens it by address.

`example_workflows/speca_flux_demo.json` is what `python dev.py demo` opens; `flux_demo_api.json` is the same graph in
API format, for scripts and tests. Linked into `custom_nodes` by `dev.py` while the demo runs.
"""

NODE_CLASS_MAPPINGS: dict = {}
