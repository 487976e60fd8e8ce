"""This project and its peers, measured in turn on the same random checkpoint: `python -m bench.peers`.

What is imported in a peer's own virtual environment (`runners`, `converters`) needs the standard library,
numpy and that peer alone.
"""
