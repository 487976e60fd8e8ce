"""Engines: runtimes that compute logits, one folder each, behind the interface of `engine`."""
