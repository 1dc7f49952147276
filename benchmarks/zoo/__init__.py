"""The trained models that everything is measured on, and how they came about."""
