"""One module a peer, run in its environment; it takes CHECKPOINT OUTPUT PRECISION CAPACITY."""
