"""Converters: one module for each peer, run in its environment with CHECKPOINT OUTPUT PRECISION CAPACITY."""
