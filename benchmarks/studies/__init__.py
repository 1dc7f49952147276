"""Questions that the benchmark itself does not answer, one a file: `python dev.py study NAME`."""
