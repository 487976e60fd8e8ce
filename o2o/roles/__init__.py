"""Finder of roles: which input is the token ids, which are positions, masks and KV caches.

    flow               backward data flow, through the graphs of composites too
    attention_blocks   where a graph attends, and what its keys and values come from
    axis_labels        the layout of caches, followed from the attention
    positions          token ids and positions among the integer inputs
    names              roles by the names that exporters choose
    finder             all of these for a model, and what the user says

For a file without an `o2o.contract`. `sign.contract.py` writes the result into the file; the runtime uses it
in memory.
"""

from o2o.roles.finder import Findings, find_roles

__all__ = ["Findings", "find_roles"]
