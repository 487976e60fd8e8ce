"""Circle to the Circle that onert 0.1.0 runs: one decode step on its `cpu` backend.

onert's defects and missing operators are worked around here or refused. `tests/o2o/lower/onert` measures each
of them.

    lowering              the decode graph, and the order in which operators are legalized
    supported_ops         which operators, dtypes and ranks onert computes correctly
    outputs               outputs in memory of their own
    attention, rope, ...  one module for each operator that has to change, named after it
"""

from o2o.lower.onert.lowering import Summary, lower_to_onert

__all__ = ["Summary", "lower_to_onert"]
