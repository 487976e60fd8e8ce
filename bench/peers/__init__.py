"""Benchmark this project and its peers on the same random checkpoint: `python -m bench.peers`.

Modules that run in a peer's virtual environment (`runners`, `converters`) import only the standard library,
numpy and that peer.
"""
