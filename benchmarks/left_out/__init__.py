"""Figures of models left out: what is chosen on all models but one is scored on that one."""
