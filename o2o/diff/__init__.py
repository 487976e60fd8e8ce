"""Differences between two models: structure, constants, metadata.

`matching` finds the operators and tensors of two graphs that correspond. `constants` measures how far apart
the numbers of two constants are. `compare` collects the differences as data, and `text` formats them.
"""
