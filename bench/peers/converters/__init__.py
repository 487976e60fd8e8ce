"""One module a peer, run in its environment: `CHECKPOINT OUTPUT PRECISION CAPACITY`, of which two are folders."""
