"""Experiments that show what acceleration, grouping and the federation loop cost or save, each by a ratio."""
