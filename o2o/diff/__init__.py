"""Differences between two models: structure, constants, metadata.

`correspondence` pairs the graphs, signatures, inputs and outputs of two models. `matching` finds the
operators and tensors of two graphs that correspond. `interfaces`, `operators`, `constant_changes` and
`metadata` compare them; `constants` measures how far apart the numbers of two constants are. `compare`
collects the differences as data, and `text` formats them.
"""
