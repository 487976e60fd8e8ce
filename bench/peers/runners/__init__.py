"""One module a peer, run in the peer's environment: it loads a model and does what `serving` is asked for."""
