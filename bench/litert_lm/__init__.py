"""LiteRT-LM and this project on the same files: `python -m bench.litert_lm`."""
