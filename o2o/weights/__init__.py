"""Weights apart from the graph: where a checkpoint keeps them, and references to them."""
