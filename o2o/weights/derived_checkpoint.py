"""Derived checkpoints: folders that say how each weight is computed from tensors of other files.

A GGUF file, a model with an adapter (LoRA) and the text part of a multimodal model become such folders. They
hold `config.json`, the tokenizer's files, and `derived_weights.json` in place of weights:

    {"version": 1,
     "sources": [{"path": "/models/a.gguf", "size": 4096, "mtime_ns": 1}],
     "tensors": {"model.norm.weight": {"file": 0, "name": "output_norm.weight", "dtype": "F32", "shape": [64],
                                       "offset": 1024, "length": 256}, ...}}

A value of `tensors` is an expression of `o2o.weights.derived_tensor`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from o2o.errors import ModelError
from o2o.weights.derived_tensor import (
    Concatenated,
    DerivedTensor,
    Element,
    Expression,
    Leaf,
    LowRank,
    Rows,
    Shifted,
    Sum,
    Transposed,
)
from o2o.weights.gguf_tensor import GgufTensor
from o2o.weights.stored_tensor import ITEM_SIZE, StoredTensor
from o2o.weights.weight_source import WeightSource

FILE = "derived_weights.json"
VERSION = 1


def write_index(path: Path, tensors: Mapping[str, Expression]) -> None:
    """Write the file that defines the weights of a derived checkpoint.

    Args:
        path: The file.
        tensors: {name: what it is computed from}.

    Raises:
        OSError: The file cannot be written, or a source does not exist.
    """
    files = list(dict.fromkeys(leaf.source.path for one in tensors.values() for leaf in one.leaves()))
    record = {
        "version": VERSION,
        "sources": [_state(file) for file in files],
        "tensors": {name: _dump(expression, files) for name, expression in tensors.items()},
    }
    path.write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")


def read_index(path: Path) -> dict[str, WeightSource]:
    """Read the weights of a derived checkpoint, without their data.

    Args:
        path: The file that `write_index` wrote.

    Returns:
        The tensors by name.

    Raises:
        ModelError: The file is damaged, or a source has changed since it was written.
        OSError: A file cannot be read.
    """
    path = path.absolute()
    try:
        record = json.loads(path.read_bytes())
        if record["version"] != VERSION:
            raise ModelError(f"{path} has version {record['version']}, this program reads {VERSION}")
        files = [Path(source["path"]) for source in record["sources"]]
        if changed := changed_source(record):
            raise ModelError(f"{changed} has changed since {path} was made from it: convert again")
        return {
            name: DerivedTensor(name, path, _load(expression, files))
            for name, expression in record["tensors"].items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(f"{path} is damaged ({type(error).__name__}: {error}): delete it") from error


def changed_source(record: Mapping[str, Any]) -> str | None:
    """Find a file that has changed since a derived checkpoint was made.

    Args:
        record: The content of its `derived_weights.json`.

    Returns:
        The path of the first such file, or of one that does not exist; None if there is none.
    """
    for source in record["sources"]:
        path = Path(source["path"])
        if not path.is_file() or _state(path) != source:
            return str(path)
    return None


def _state(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _dump(expression: Expression, files: list[Path]) -> dict[str, Any]:
    if isinstance(expression, Leaf):
        source = expression.source
        assert isinstance(source, StoredTensor | GgufTensor)
        return {
            "file": files.index(source.path),
            "name": source.name,
            "dtype": source.dtype,
            "shape": list(source.shape),
            "offset": source.offset,
            "length": source.length,
        }
    operands = [_dump(operand, files) for operand in expression.operands]
    fields: dict[str, Any] = {"op": type(expression).__name__, "of": operands}
    if isinstance(expression, Rows):
        fields["ranges"] = [list(part) for part in expression.ranges]
    if isinstance(expression, Element):
        fields["index"] = expression.index
    if isinstance(expression, Shifted):
        fields["value"] = expression.value
    if isinstance(expression, Sum):
        fields["scale"] = expression.scale
    return fields


def _load(fields: dict[str, Any], files: list[Path]) -> Expression:
    if "op" not in fields:
        kind = StoredTensor if fields["dtype"] in ITEM_SIZE else GgufTensor
        shape = tuple(int(size) for size in fields["shape"])
        place = int(fields["offset"]), int(fields["length"])
        return Leaf(kind(str(fields["name"]), files[fields["file"]], str(fields["dtype"]), shape, *place))
    operands = [_load(operand, files) for operand in fields["of"]]
    match fields["op"]:
        case "Rows":
            return Rows(operands[0], tuple((int(a), int(b), int(c)) for a, b, c in fields["ranges"]))
        case "Element":
            return Element(operands[0], int(fields["index"]))
        case "Concatenated":
            return Concatenated(tuple(operands))
        case "Transposed":
            return Transposed(operands[0])
        case "Shifted":
            return Shifted(operands[0], float(fields["value"]))
        case "Sum":
            return Sum(operands[0], operands[1], float(fields["scale"]))
        case "LowRank":
            return LowRank(operands[0], operands[1])
    raise ValueError(f"no operation {fields['op']!r}")


def rows_of(index: Any) -> tuple[tuple[int, int, int], ...]:
    """Write row numbers as ranges.

    Args:
        index: The numbers, in order.

    Returns:
        (start, stop, step) of each run with a constant step.
    """
    numbers = [int(number) for number in index]
    ranges: list[tuple[int, int, int]] = []
    at = 0
    while at < len(numbers):
        step = numbers[at + 1] - numbers[at] if at + 1 < len(numbers) else 1
        end = at + 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        if step <= 0:
            step, end = 1, at + 1
        ranges.append((numbers[at], numbers[at] + (end - at - 1) * step + 1, step))
        at = end
    return tuple(ranges)
