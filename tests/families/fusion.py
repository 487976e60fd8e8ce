"""How many attentions of a model are one operator."""

from __future__ import annotations

from pathlib import Path

from o2o.formats import load

ATTENTION = ("ATTENTION", "o2o.attention", "o2o.causal_attention")


def fused(path: Path, attentions: int) -> tuple[int, int]:
    """Count attentions.

    Args:
        path: A Circle file.
        attentions: The number of attentions of each graph.

    Returns:
        How many are one operator, and how many there are.
    """
    model = load(path)
    names = [node.op_type for graph in model.graphs for node in graph]
    return sum(name in ATTENTION for name in names), attentions * len(model.graphs)
