"""Run a package: a folder with a model and its tokenizer.

    from runtime_py import Package, Sampling

    with Package.load("tinyllama") as package:
        for token in package.stream("Once upon a time", sampling=Sampling(temperature=0.8)):
            print(token.text, end="", flush=True)

Modules, in the order of the data: `package`, `model` (its contract), `text` (tokenizers, chat templates),
`engines`, `generation` (sampling, logits processors, stop strings), `evaluation` (quality), `benchmark`
(speed).

Shapes are written with these letters: B batch, T tokens, S cache capacity, N query heads, K key/value heads,
H head dimension, D model dimension, V vocabulary, P prompt length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime_py.generation.grammar import Grammar
    from runtime_py.generation.sampling import Sampling
    from runtime_py.package import Package

__all__ = ["Grammar", "Package", "Sampling"]


def __getattr__(name: str) -> Any:
    """Import an exported class at its first use, so that `--help` and light modules start fast."""
    if name == "Package":
        from runtime_py.package import Package

        return Package
    if name == "Grammar":
        from runtime_py.generation.grammar import Grammar

        return Grammar
    if name == "Sampling":
        from runtime_py.generation.sampling import Sampling

        return Sampling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
