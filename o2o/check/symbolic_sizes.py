"""Sizes of symbolic dimensions for a run: chosen by their names, so that they agree.

Names of batches get 1, others get 4. Expressions are computed, such as `past_sequence_length + 1`. Names with
`total` are the sum of past and new tokens.
Exporters also make names up, such as `s43`. Then the roles of the inputs show what belongs together.
"""

from __future__ import annotations

from collections.abc import Sequence

from o2o.dimension_expressions import evaluated

Dims = tuple[int | str, ...]

EXAMPLE = 4
"""The size of a symbolic dimension in the first runs."""


def sizes_of(tensors: Sequence[tuple[str | None, Dims]], size: int) -> dict[str, int]:
    """Choose the size of each symbolic dimension of a model's inputs and outputs.

    The ids of tokens are [batch, tokens], a mask of padding is [batch, past and new tokens], whatever their
    dimensions are called.

    Args:
        tensors: The kind of the role and the dimensions of each: numbers, names, or expressions such as
            `past_sequence_length + 1`.
        size: The size of a dimension that no rule of this module concerns.

    Returns:
        The sizes.
    """
    symbols = list(dict.fromkeys(dim for _, dims in tensors for dim in dims if isinstance(dim, str)))
    sizes = _by_name(symbols, size)
    ids = next((dims for kind, dims in tensors if kind == "tokens" and len(dims) == 2), None)
    if ids is not None:
        sizes |= _by_role(tensors, ids, size)
        for symbol in symbols:
            if not symbol.isidentifier() and (value := evaluated(symbol, sizes)) is not None:
                sizes[symbol] = value
    return sizes


def _by_role(tensors: Sequence[tuple[str | None, Dims]], ids: Dims, size: int) -> dict[str, int]:
    """Sizes of the dimensions of token ids, caches and a mask of padding."""
    sizes: dict[str, int] = {}
    batch, tokens = ids
    for kind, dims in tensors:
        if kind in ("tokens", "position", "mask") and len(dims) == 2 and isinstance(dims[0], str):
            sizes[dims[0]] = 1
    if isinstance(tokens, str):
        sizes[tokens] = size
    rows: int | str = 0
    for kind, dims in tensors:
        if kind not in ("tokens", "position", "mask") and len(dims) == 4:
            symbolic = [dim for dim in dims if isinstance(dim, str) and dim != batch]
            if symbolic and symbolic[0].isidentifier():
                rows = symbolic[0]
                break
    for kind, dims in tensors:
        if kind == "mask" and len(dims) == 2 and isinstance(dims[1], str):
            sizes[dims[1]] = size * (2 if rows else 1)
    return sizes


def _by_name(symbols: Sequence[str], size: int) -> dict[str, int]:
    names = [symbol for symbol in symbols if symbol.isidentifier()]
    sizes = {name: 1 if "batch" in name else size for name in names}
    past = [name for name in names if "past" in name]
    tokens = [name for name in names if "seq" in name and "past" not in name and "total" not in name]
    for name in names:
        if "total" in name and past and tokens:
            sizes[name] = sizes[past[0]] + sizes[tokens[0]]
    for symbol in symbols:
        if symbol not in sizes:
            value = evaluated(symbol, sizes)
            sizes[symbol] = size if value is None else value
    return sizes
