"""How the emoji models were trained: `python dev.py train flux`."""
