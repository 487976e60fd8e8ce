"""A signature that reads another number of tokens, compared row by row.

The signature of fewer tokens reads a text in chunks, the other one reads it at once. Each chunk starts with
the caches that the chunk before has written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np

from o2o.check.feeds import Case, random_feeds, window_row
from o2o.check.model_copies import copied
from o2o.check.reference_runner import alike, runner_of
from o2o.check.runner import Io, IoTensor, Runner
from o2o.check.tensors import relative_difference
from o2o.cli.text import counted
from o2o.errors import ModelError
from o2o.model import Model
from o2o.operators.masks import HIDDEN_SCORE
from o2o.streams.temporary import temporary_folder


def check_resized(before: Model, after: Model, sources: Mapping[str, str], tolerance: float) -> str:
    """Compare the results of each token.

    Args:
        before: The original.
        after: The result.
        sources: {signature of the result: the signature of the original that it replaces}.
        tolerance: The largest difference, as a share of a tensor's largest number.

    Returns:
        A sentence for the user: how many rows were compared, and the largest difference.

    Raises:
        ModelError: A row differs, or a model cannot be run.
    """
    with temporary_folder() as folder:
        old = runner_of(copied(before, os.path.join(folder, "before")), "the original", or_numpy=True)
        new = runner_of(copied(after, os.path.join(folder, "after")), "the result", or_numpy=True)
        new = alike(new, old)
        largest, rows = 0.0, 0
        for name, source in sources.items():
            long, short = (old, source), (new, name)
            if _tokens(new.io[name]) > _tokens(old.io[source]):
                long, short = short, long
            for position in _positions(long[0].io[long[1]]):
                for output, difference, count in _differences(long, short, position):
                    if difference > tolerance:
                        raise ModelError(
                            f"--check: {output} of {name} differs at position {position} by {difference:.1e} "
                            "of its largest value"
                        )
                    largest, rows = max(largest, difference), rows + count
    engines = " and ".join(dict.fromkeys((old.engine, new.engine)))
    return (
        f"checked on {engines}: {counted(rows, 'row')} the same, within {largest:.1e} of the largest number"
    )


def _tokens(io: Io) -> int:
    return max((tensor.shape[-1] for tensor in io.inputs.values() if tensor.kind == "tokens"), default=1)


def _positions(io: Io) -> list[int]:
    """The first position, a middle one, and the last."""
    rows = [t.capacity for t in io.inputs.values() if t.capacity is not None]
    last = max(0, min(rows) - _tokens(io)) if rows else 0
    return sorted({0, last // 2, last})


def _differences(
    long: tuple[Runner, str], short: tuple[Runner, str], position: int
) -> Iterator[tuple[str, float, int]]:
    """Name, difference and number of rows of each output of the run of more tokens."""
    io, chunk_io = (runner.io[name] for runner, name in (long, short))
    tokens, size = _tokens(io), _tokens(chunk_io)
    feeds = random_feeds(io.inputs, Case(position))
    feeds |= {name: _causal(tensor, position) for name, tensor in io.inputs.items() if tensor.kind == "mask"}
    whole = long[0].run(long[1], feeds)
    chunk_feeds = {name: feeds[name] for name in chunk_io.inputs}
    count = tokens // size
    pieces: dict[str, list[np.ndarray]] = {}
    for number in range(count):
        for name, tensor in chunk_io.inputs.items():
            chunk_feeds[name] = _part(feeds[name], tensor, number * size, size, chunk_feeds[name])
        results = short[0].run(short[1], chunk_feeds)
        for name, numbers in results.outputs.items():
            pieces.setdefault(name, []).append(numbers)
        caches = {
            tensor.slot: results.outputs[name]
            for name, tensor in chunk_io.outputs.items()
            if tensor.slot is not None
        } | {chunk_io.inputs[name].slot: numbers for name, numbers in results.updated.items()}
        for name, tensor in chunk_io.inputs.items():
            if tensor.slot is not None and tensor.slot in caches:
                chunk_feeds[name] = caches[tensor.slot]
    written = window_row(io.inputs, position) + count * size, position + count * size
    of_whole, of_chunks = {**whole.outputs, **whole.updated}, {**results.outputs, **results.updated}
    for name, wanted in of_whole.items():
        tensor = {**io.inputs, **io.outputs}[name]
        actual = of_chunks[name]
        if wanted.shape == actual.shape and tensor.token_axis is not None and size < tokens:
            rows = written[0] if tensor.is_window_cache else written[1]
            cut = (slice(None),) * tensor.token_axis + (slice(0, rows),)
            yield name, relative_difference(wanted[cut], actual[cut]), rows
        elif wanted.shape == actual.shape:
            yield name, relative_difference(wanted, actual), tokens
        else:
            (axis,) = [a for a, (n, m) in enumerate(zip(wanted.shape, actual.shape, strict=True)) if n != m]
            joined = np.concatenate(pieces[name], axis)
            cut = (slice(None),) * axis + (slice(0, count * size),)
            yield name, relative_difference(wanted[cut], joined), count * size


def _part(numbers: np.ndarray, tensor: IoTensor, first: int, size: int, carried: np.ndarray) -> np.ndarray:
    """What an input is for the tokens `first` to `first + size`; `carried` for caches."""
    if tensor.slot is not None:
        return carried
    if numbers.shape == tensor.shape and tensor.kind in ("position", "window_row"):
        return (numbers + first).astype(numbers.dtype)
    changed = [a for a, (n, m) in enumerate(zip(numbers.shape, tensor.shape, strict=True)) if n != m]
    for axis in changed:
        numbers = numbers.take(range(first, first + size), axis)
    return numbers


def _causal(tensor: IoTensor, position: int) -> np.ndarray:
    """The numbers of an input `mask`, [.., T, S]."""
    *_, tokens, keys = tensor.shape
    visible = np.arange(keys)[None, :] <= position + np.arange(tokens)[:, None]
    assert tensor.dtype is not None
    numbers = np.where(visible, 0.0, HIDDEN_SCORE) if tensor.dtype.kind == "f" else visible
    return np.broadcast_to(numbers, tensor.shape).astype(tensor.dtype)
