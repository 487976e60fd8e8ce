"""Short runs of a decoder that show in which forms it returns its caches, and which runs it computes rightly.

Three tokens are read one by one, which is the reference, and then in longer runs. A graph that was traced
with one token may have lost its causal mask: then longer runs show a token what follows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from o2o.errors import ModelError
from runtime_py.engines.onnx.decoder.caches import AppendedCache, InPlaceCache, OpaqueCache, TextCache
from runtime_py.engines.onnx.decoder.graph import EXACT, BoundGraph, DecoderGraph
from runtime_py.engines.onnx.decoder.inputs import Run
from runtime_py.engines.onnx.decoder.interface import Cache, Tensor
from runtime_py.model.model_config import ModelConfig

TOKENS = (3, 1, 2)
_ROWS_NAME = ("past", "seq", "len", "total", "cache_size", "context")
Opener = Callable[[], TextCache]


@dataclass(frozen=True)
class Abilities:
    """What trial runs showed.

    Attributes:
        vocab_size: V.
        rows: S, the number of rows of the smallest cache that does not grow; None if all grow.
        openers: By cache of the graph that reads a token after others: how to create one for a text. Empty
            for a graph that reads each text as a whole.
        shapes: By cache: its shape before the first token.
        lengths: Where T is fixed: by T, whether a run returns the logits of each token. None for any T.
        starts: Whether a run of several tokens may begin a text.
        continues: Whether a run of several tokens may follow others.
        gives_all_logits: Whether a run of several tokens can return the logits of each.
        is_exact: Whether these logits are those of single tokens, but for the order of additions.
    """

    vocab_size: int
    rows: int | None
    openers: Mapping[Cache, Opener]
    shapes: Mapping[Cache, Sequence[int]]
    lengths: Mapping[int, bool] | None
    starts: bool
    continues: bool
    gives_all_logits: bool
    is_exact: bool


def try_out(step: DecoderGraph, first: DecoderGraph | None, config: ModelConfig) -> Abilities:
    """Run a decoder on a few tokens.

    Args:
        step: The graph that reads tokens after others.
        first: Another graph for the beginning of a text; None if there is none.
        config: Facts that the graph lacks.

    Returns:
        What it can do.

    Raises:
        ModelError: It cannot be run, or is no causal decoder.
    """
    if not any(cache.past for cache in step.interface.caches):
        return _without_caches(step)
    return _Trial(step, first, config).abilities()


def _without_caches(graph: DecoderGraph) -> Abilities:
    """A graph that reads whole texts. A token must not change the logits of those before it."""
    run = graph.bind({})
    length = max(graph.interface.lengths or (0,)) or None
    tokens = TOKENS[:length]
    before = run(Run(tokens[:1], 0, all_logits=True, length=length))
    after = run(Run(tokens, 0, all_logits=True, length=length))
    if len(after) < len(tokens) and length is not None:
        raise ModelError(
            f"it reads exactly {length} tokens and gives logits of the last alone: export it with a symbolic "
            "number of tokens"
        )
    every = len(after) >= len(tokens)
    if every and error_of(before[:1], after[:1]) > graph.tolerance:
        raise ModelError("the logits of a token depend on the tokens after it: this is no causal decoder")
    lengths = {length: True} if length is not None else None
    return Abilities(before.shape[-1], length, {}, {}, lengths, True, False, every, True)


class _Trial:
    def __init__(self, step: DecoderGraph, first: DecoderGraph | None, config: ModelConfig) -> None:
        self.step, self.first = step, first
        self.lengths = step.interface.lengths
        self.shapes = {
            cache: _first_shape(cache.past, step.interface.batch, config)
            for cache in step.interface.caches
            if cache.past is not None
        }
        if self.lengths is not None and self.lengths[0] > 1 and any(0 in s for s in self.shapes.values()):
            raise ModelError(
                f"it reads exactly {self.lengths[0]} tokens after others, and one is needed: give its number "
                "of tokens a symbolic dimension"
            )

    def abilities(self) -> Abilities:
        caches = self._open()
        length = self.lengths[0] if self.lengths is not None else 1
        traces = {cache: _CacheTrace(cache, shape, length) for cache, shape in self.shapes.items()}
        singles = []
        for position, token in enumerate(TOKENS):
            singles.append(self._single(caches, token, position))
            for cache, own in caches.items():
                traces[cache].note(own, position)
        openers = {cache: trace.opener() for cache, trace in traces.items()}
        reference = np.concatenate(singles)
        rows = [trace.rows for trace in traces.values() if trace.rows is not None]
        vocab_size, capacity = reference.shape[-1], min(rows, default=None)
        if self.lengths is not None:
            lengths, error = self._fixed_runs(reference)
            every, exact = all(lengths.values()), error <= EXACT
            return Abilities(vocab_size, capacity, openers, self.shapes, lengths, True, True, every, exact)
        starts, every, whole_alone = self._starts(reference)
        error = self._continuing_error(reference)
        continues, exact = not whole_alone and error <= self.step.tolerance, error <= EXACT
        openers = {} if whole_alone else openers
        return Abilities(vocab_size, capacity, openers, self.shapes, None, starts, continues, every, exact)

    def _open(self) -> dict[Cache, OpaqueCache]:
        return {
            cache: OpaqueCache(shape, cache.past.dtype)
            for cache, shape in self.shapes.items()
            if cache.past is not None
        }

    def _single(self, caches: Mapping[Cache, OpaqueCache], token: int, position: int) -> np.ndarray:
        """The logits [1, V] of one token. A mask of any size may have to cover all rows of the caches."""
        length = self.lengths[0] if self.lengths is not None else None
        run = Run((token,), position, all_logits=length is not None and length > 1, length=length)
        graph = self._bound(caches, position)
        try:
            logits = graph(run)
        except ModelError:
            fixed = [max(shape[1:-1]) for shape in self.shapes.values() if 0 not in shape and len(shape) > 2]
            if position or not fixed or self.step.mask_rows is not None:
                raise
            self.step.mask_rows = min(fixed)
            logits = graph(run)
        if not len(logits):
            raise ModelError(
                f"a run of {length or 1} tokens returns no logits: merge it with one of one token"
            )
        return logits

    def _bound(self, caches: Mapping[Cache, TextCache], position: int) -> BoundGraph:
        if position or self.first is None:
            return self.step.bind(caches)
        return self.first.bind(matching(self.first, caches))

    def _fixed_runs(self, reference: np.ndarray) -> tuple[dict[int, bool], float]:
        """By number of tokens: whether a run returns the logits of each; and the largest error of these.

        Runs that are wrong are left out.
        """
        assert self.lengths is not None
        result, largest = {self.lengths[0]: True}, 0.0
        for length in self.lengths[1:]:
            tokens = TOKENS[:length]
            try:
                logits = self.step.bind(self._open())(Run(tokens, 0, all_logits=True, length=length))
            except ModelError:
                continue
            every = len(logits) == len(tokens)
            error = error_of(reference[: len(tokens)], logits) if every else 0.0
            if error <= self.step.tolerance:
                result[length], largest = every, max(largest, error)
        return result, largest

    def _starts(self, reference: np.ndarray) -> tuple[bool, bool, bool]:
        """Whether a run may begin a text, gives all logits, and is right where single tokens are wrong."""
        if (self.first or self.step).interface.lengths is not None:
            return False, False, False
        try:
            logits = self._bound(self._open(), 0)(Run(TOKENS, 0, all_logits=True))
        except ModelError:
            return False, False, False
        every = len(logits) == len(TOKENS)
        right = error_of(reference[-len(logits) :], logits) <= self.step.tolerance
        causal = every and error_of(reference[:1], logits[:1]) <= self.step.tolerance
        return right or causal, every, causal and not right

    def _continuing_error(self, reference: np.ndarray) -> float:
        """The error of a run of several tokens that follow another one; infinity if it fails."""
        if self.lengths is not None:
            return math.inf
        caches = self._open()
        try:
            self._single(caches, TOKENS[0], 0)
            logits = self.step.bind(caches)(Run(TOKENS[1:], 1, all_logits=True))
        except ModelError:
            return math.inf
        return error_of(reference[-len(logits) :], logits)


def matching(graph: DecoderGraph, caches: Mapping[Cache, TextCache]) -> dict[Cache, TextCache]:
    """Find the caches of a text for another graph of the same decoder.

    Args:
        graph: The other graph.
        caches: The caches by those of the first graph.

    Returns:
        The same caches by those of the other graph, which have the same role or name.

    Raises:
        ModelError: The other graph lacks a cache.
    """
    by_name = {cache.present.name: own for cache, own in caches.items()}
    by_role = {cache.role.slot: own for cache, own in caches.items() if cache.role is not None}
    result = {}
    for cache in graph.interface.caches:
        own = by_name.get(cache.present.name)
        if own is None and cache.role is not None:
            own = by_role.get(cache.role.slot)
        if own is not None:
            result[cache] = own
    if len(result) < len(caches):
        raise ModelError(f"{graph.file.name} returns {len(result)} of {len(caches)} caches")
    return result


def error_of(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the error of logits: the root mean square of the differences in standard deviations.

    Args:
        expected: [T, V].
        actual: [T, V].

    Returns:
        The error.
    """
    scale = float(expected.std()) or 1.0
    return float(np.sqrt(np.mean((expected.astype(np.float64) - actual) ** 2))) / scale


def _first_shape(past: Tensor, batch: str | None, config: ModelConfig) -> list[int]:
    """The shape of a cache before the first token: no rows, where their number is not fixed."""
    symbols = [axis for axis, dim in enumerate(past.dims) if not isinstance(dim, int)]
    shape = [dim if isinstance(dim, int) else -1 for dim in past.dims]
    for axis in symbols:
        if past.dims[axis] == batch and batch is not None:
            shape[axis] = 1
    if symbols and symbols[0] == 0 and shape[0] == -1:
        shape[0] = 1
    left = [axis for axis in symbols if shape[axis] == -1]
    if len(left) > 1:
        named = [axis for axis in left if any(part in str(past.dims[axis]) for part in _ROWS_NAME)]
        rows = named[0] if len(named) == 1 else len(shape) - 2
        for axis in left:
            size = 0 if axis == rows else config.head_dim if axis == len(shape) - 1 else config.heads
            if size is None:
                raise ModelError(
                    f"the size of {past.dims[axis]!r} of {past.name!r} is not known: put the config.json of "
                    "the checkpoint beside the model"
                )
            shape[axis] = size
    elif left:
        shape[left[0]] = 0
    return shape


class _CacheTrace:
    """What three tokens, one by one, do to a cache. Each run has T tokens, all but the first padding."""

    def __init__(self, cache: Cache, shape: list[int], length: int) -> None:
        self.cache, self.shape, self.length = cache, shape, length
        self._grown: set[tuple[int, ...]] = set()  # by how much each axis grew with a token
        self._written = set(range(len(shape)))  # axes along which token number i changed index i alone
        self._last_shape = shape
        self._last: np.ndarray | None = None

    def note(self, cache: OpaqueCache, position: int) -> None:
        """Note the effect of the token at a position."""
        shape = cache.shape
        self._grown.add(tuple(after - before for before, after in zip(self._last_shape, shape, strict=True)))
        self._last_shape = shape
        if shape == self.shape:
            bits = cache.bits.copy()
            changed = bits != (0 if self._last is None else self._last)
            self._last = bits
            for axis in [*self._written]:
                others = tuple(other for other in range(len(shape)) if other != axis)
                indices = set(np.flatnonzero(changed.any(others)).tolist())
                if position not in indices or not indices <= set(range(position, position + self.length)):
                    self._written.remove(axis)

    @property
    def rows(self) -> int | None:
        """S of a cache of fixed capacity."""
        return self.shape[next(iter(self._written))] if self._is_static else None

    @property
    def _is_static(self) -> bool:
        return len(self._written) == 1 and not any(map(any, self._grown))

    def opener(self) -> Opener:
        """How to create the cache of a text."""
        assert self.cache.past is not None
        shape, dtype, in_place = self.shape, self.cache.past.dtype, self.cache.in_place
        if self._is_static:
            (axis,) = self._written
            return lambda: InPlaceCache(shape, axis, dtype, one_buffer=in_place)
        grown = next(iter(self._grown))
        if len(self._grown) == 1 and grown.count(1) == 1 and grown.count(0) == len(grown) - 1:
            axis = grown.index(1)
            if in_place:
                return lambda: InPlaceCache(shape, axis, dtype, one_buffer=True)
            if not self.cache.is_cut:
                return lambda: AppendedCache(shape, axis, dtype)
        return lambda: OpaqueCache(shape, dtype)
