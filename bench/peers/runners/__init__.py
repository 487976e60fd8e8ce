"""Runners: one module for each peer, run in its environment. They load a model and answer `serving`."""
