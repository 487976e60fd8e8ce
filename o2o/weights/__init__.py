"""Weights in checkpoints: where their bytes are, and how they become constants of a model."""
