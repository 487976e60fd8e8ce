"""Reduction of a model to a small one for which a command still fails: delta debugging.

`ddmin` is the algorithm. `failing_command` runs the command. `changes` has the ways to make a model smaller,
and `reducer` tries them until none helps. A new way needs a function in `changes` and a line in `reducer`.
"""
