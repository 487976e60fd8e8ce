"""A table that maps the tensors of a checkpoint onto the parameters of a model.

    from export.authoring.tensor_names import rows, stacked, transposed

    TENSOR_NAMES = {
        "embedding.weight": "tok_embeddings.weight",
        "layers.{layer}.attention.q_proj.weight": rows("blocks.{layer}.qkv.weight", 0, 64),
        "layers.{layer}.feed_forward.up_proj.weight": transposed("blocks.{layer}.mlp.w_in"),
        "layers.{layer}.attention_norm.weight": stacked("attention_norms"),
    }

A key is a parameter of the model, or a pattern of parameters: `{layer}` stands for a number. A value is a
stored tensor, or a part of it, or several. Weights are read by rows, and only when they are needed.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from o2o.cli.text import counted, listed
from o2o.errors import ModelError
from o2o.weights.derived_tensor import (
    Concatenated,
    Element,
    Expression,
    Rows,
    Shifted,
    Transposed,
    expression_of,
)
from o2o.weights.weight_source import WeightSource

LAYER = "{layer}"


class Source(ABC):
    """What a parameter is made of."""

    @abstractmethod
    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        """Write it as an expression of stored tensors.

        Args:
            layer: The number that `{layer}` stands for; None without one.
            read: Returns the stored tensor of a name.

        Returns:
            The expression.

        Raises:
            ModelError: The stored tensor has not the right shape for it.
        """


@dataclass(frozen=True)
class _Stored(Source):
    name: str

    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        return read(self.name if layer is None else self.name.replace(LAYER, str(layer)))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Rows(Source):
    of: Source
    start: int | Callable[[int], int]
    stop: int | Callable[[int], int]

    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        of = self.of.expression(layer, read)
        start, stop = (edge(layer or 0) if callable(edge) else edge for edge in (self.start, self.stop))
        if not 0 <= start < stop <= of.shape[0]:
            raise ModelError(f"rows {start} to {stop} of {self.of} do not exist: it has {of.shape[0]} rows")
        return Rows(of, ((start, stop, 1),))

    def __str__(self) -> str:
        return str(self.of)


@dataclass(frozen=True)
class _Joined(Source):
    parts: Sequence[Source]

    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        parts = [part.expression(layer, read) for part in self.parts]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ModelError(
                f"tensors of shapes {listed([str(list(p.shape)) for p in parts])} cannot be joined"
            )
        return Concatenated(tuple(parts))


@dataclass(frozen=True)
class _Transposed(Source):
    of: Source

    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        of = self.of.expression(layer, read)
        if len(of.shape) != 2:
            raise ModelError(f"a tensor of shape {list(of.shape)} cannot be transposed: it is no matrix")
        return Transposed(of)


@dataclass(frozen=True)
class _Stacked(Source):
    of: Source

    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        of = self.of.expression(None, read)
        if layer is None or len(of.shape) < 2 or layer >= of.shape[0]:
            raise ModelError(f"a tensor of shape {list(of.shape)} holds no layer {layer}")
        return Element(of, layer)


@dataclass(frozen=True)
class _Blocks(Source):
    of: Source
    index: int
    count: int
    size: int

    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        of = self.of.expression(layer, read)
        step = self.count * self.size
        if not 0 <= self.index < self.count or of.shape[0] % step:
            raise ModelError(f"{of.shape[0]} rows are not groups of {self.count} blocks of {self.size} rows")
        first = self.index * self.size
        starts = range(first, of.shape[0], step)
        return Rows(of, tuple((start, start + self.size, 1) for start in starts))


@dataclass(frozen=True)
class _Shifted(Source):
    of: Source
    value: float

    def expression(self, layer: int | None, read: Callable[[str], Expression]) -> Expression:
        return Shifted(self.of.expression(layer, read), self.value)


TensorNames = Mapping[str, str | Source]
"""{parameter, or pattern of parameters: what it is made of}"""


_Pattern = tuple[str, re.Pattern[str], Source]


def rows(of: str | Source, start: int | Callable[[int], int], stop: int | Callable[[int], int]) -> Source:
    """Take rows of a tensor, such as the queries of a fused projection.

    Args:
        of: A stored tensor or another source.
        start: The first row; a function of the layer if layers differ.
        stop: The row after the last.

    Returns:
        The source.
    """
    return _Rows(_source(of), start, stop)


def blocks(of: str | Source, index: int, count: int, size: int) -> Source:
    """Take every `count`-th block of rows, such as the queries of a projection that is fused head by head.

    Args:
        of: A stored tensor or another source.
        index: The number of the first block.
        count: How many blocks form a group; one block of each group is taken.
        size: The rows of a block, such as H.

    Returns:
        The source.
    """
    return _Blocks(_source(of), index, count, size)


def shifted(of: str | Source, value: float) -> Source:
    """Add a number to each element, such as 1 to norms that are stored as a difference from 1.

    Args:
        of: A stored tensor or another source.
        value: The number.

    Returns:
        The source.
    """
    return _Shifted(_source(of), value)


def joined(*parts: str | Source) -> Source:
    """Put tensors one below the other, such as queries, keys and values into a fused projection.

    Args:
        *parts: Stored tensors or other sources, with rows of equal length.

    Returns:
        The source.
    """
    return _Joined([_source(part) for part in parts])


def transposed(of: str | Source) -> Source:
    """Transpose a matrix that is stored as [inputs, outputs].

    Args:
        of: A stored tensor or another source.

    Returns:
        The source.
    """
    return _Transposed(_source(of))


def stacked(of: str | Source) -> Source:
    """Take the layer's part of a tensor that holds all layers along its first axis.

    Args:
        of: A stored tensor or another source, [layers, ...].

    Returns:
        The source.
    """
    return _Stacked(_source(of))


def apply(
    names: TensorNames,
    parameters: Mapping[str, Sequence[int]],
    aliases: Mapping[str, Sequence[str]],
    stored: Mapping[str, WeightSource],
) -> tuple[dict[str, Expression], list[str]]:
    """Map the tensors of a checkpoint.

    Args:
        names: The table. A parameter that no key matches has the stored tensor of its own name.
        parameters: {name: shape} of the model.
        aliases: {parameter: its other names}, for tied parameters.
        stored: The tensors of the checkpoint.

    Returns:
        {parameter: expression}, and the stored tensors that no parameter takes.

    Raises:
        ModelError: A tensor is missing or has another shape, or a key of the table matches no parameter.
    """
    patterns = [(key, _pattern(key), _source(value)) for key, value in names.items()]
    used: set[str] = set()
    absent: list[str] = []

    def read(name: str) -> Expression:
        if name not in stored:
            absent.append(name)
            raise LookupError(name)
        used.add(name)
        return expression_of(stored[name])

    result: dict[str, Expression] = {}
    missing: dict[str, str] = {}
    misshaped: list[str] = []
    for parameter, shape in parameters.items():
        for alias in (parameter, *aliases.get(parameter, ())):
            layer, source = _match(alias, patterns)
            try:
                expression = source.expression(layer, read)
            except LookupError:
                missing.setdefault(parameter, absent[-1])
                continue
            except ModelError as error:
                raise ModelError(f"{alias}: {error}") from error
            result[parameter] = expression
            missing.pop(parameter, None)
            if expression.shape != tuple(shape):
                misshaped.append(f"{parameter} is {list(shape)}, its source {list(expression.shape)}")
            break
    surplus = [name for name in stored if name not in used]
    problems = [f"no tensor for {_missing(missing, surplus)}"] if missing else []
    problems += misshaped[:3]
    names_of_model = [*parameters, *(alias for others in aliases.values() for alias in others)]
    if unmatched := [key for key, pattern, _ in patterns if not any(map(pattern.fullmatch, names_of_model))]:
        near = difflib.get_close_matches(unmatched[0].replace(LAYER, "0"), parameters, 1, 0.6)
        hint = f" (the nearest is {near[0]})" if near else ""
        problems.append(f"the model has no parameter {unmatched[0]}{hint}")
    if problems and surplus:
        problems.append(f"{counted(len(surplus), 'stored tensor')} without a parameter: {listed(surplus, 4)}")
    if problems:
        raise ModelError(f"the tensors do not fit the model: {'; '.join(problems)}")
    return result, surplus


def _match(name: str, patterns: Sequence[_Pattern]) -> tuple[int | None, Source]:
    """The number of a parameter's layer, and what the parameter is made of."""
    for _, pattern, source in patterns:
        if match := pattern.fullmatch(name):
            return int(match[1]) if match.groups() else None, source
    return None, _Stored(name)


def _missing(missing: Mapping[str, str], surplus: Sequence[str]) -> str:
    name = next(iter(missing.values()))
    near = difflib.get_close_matches(name, surplus, 1, 0.6)
    hint = f"{name!r} is not stored" + (f", the nearest name is {near[0]!r}" if near else "")
    return f"{listed(list(missing), 4)} ({hint})"


def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(re.escape(key).replace(re.escape(LAYER), r"(\d+)", 1).replace(re.escape(LAYER), r"\1"))


def _source(value: str | Source) -> Source:
    return _Stored(value) if isinstance(value, str) else value
