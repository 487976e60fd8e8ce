"""Numbers in the tables of a file: each refers to a tensor, buffer, operator code or subgraph that exists.

These rules work on the tables as they are in the file, as a file that breaks them cannot be read as a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from o2o import contract
from o2o.formats.onnx_reader import metadata_of
from o2o.formats.schema import SUBGRAPH_FIELDS, Span, detect
from o2o.model import dims_of, dtype_name
from o2o.streams import Source
from o2o.verifier.issue import Issue


def verify_tables(source: Source) -> Iterator[Issue]:
    """Check the numbers in a file's tables.

    Args:
        source: A Circle or TFLite file.

    Yields:
        Issues V001 and V004.

    Raises:
        ModelError: The file has another format.
        ValueError, IndexError, struct.error: The tables are cut off, or are no tables.
    """
    table, spans = detect(source.header, source.name).unpack_header(source.header)
    graphs = table.subgraphs or ()
    for number, graph in enumerate(graphs):
        yield from _graph(table, graph, _text(graph.name) or f"subgraph {number}", spans)
    for entry in table.metadata or ():
        if entry.buffer >= len(spans):
            yield Issue("V001", f"metadata {_text(entry.name)}: no buffer {entry.buffer} ({_count(spans)})")
    for signature in table.signatureDefs or ():
        yield from _signature(graphs, signature)


def _graph(table: Any, graph: Any, label: str, spans: Sequence[Span]) -> Iterator[Issue]:
    tensors, codes = graph.tensors or (), table.operatorCodes or ()
    for number, tensor in enumerate(tensors):
        if tensor.buffer >= len(spans):
            name = _text(tensor.name) or f"tensor {number}"
            yield Issue("V001", f"no buffer {tensor.buffer} ({_count(spans)})", label, tensor=name)
    for side, numbers in (("input", graph.inputs), ("output", graph.outputs)):
        for position, number in enumerate(_numbers(numbers)):
            if not 0 <= number < len(tensors):
                yield Issue("V001", f"{side} {position}: no tensor {number} ({_count(tensors)})", label)
    for index, operator in enumerate(graph.operators or ()):
        if operator.opcodeIndex >= len(codes):
            message = f"no operator code {operator.opcodeIndex} ({_count(codes)})"
            yield Issue("V001", message, label, index)
        for side, numbers in (("operand", operator.inputs), ("result", operator.outputs)):
            for position, number in enumerate(_numbers(numbers)):
                if not -1 <= number < len(tensors):
                    message = f"{side} {position}: no tensor {number} ({_count(tensors)})"
                    yield Issue("V001", message, label, index)
        for number in _numbers(operator.intermediates):
            if not 0 <= number < len(tensors):
                yield Issue("V001", f"intermediate: no tensor {number} ({_count(tensors)})", label, index)
        yield from _inner_graphs(table, operator, label, index)


def _inner_graphs(table: Any, operator: Any, label: str, index: int) -> Iterator[Issue]:
    """The subgraphs that an operator runs."""
    options = operator.builtinOptions if operator.builtinOptions is not None else operator.builtinOptions2
    kind = type(options).__name__[:-1]
    for name, item in vars(options).items() if options is not None else ():
        if (kind, name) not in SUBGRAPH_FIELDS or item is None:
            continue
        for number in [item] if isinstance(item, int) else _numbers(item):
            if not -1 <= number < len(table.subgraphs):
                yield Issue("V001", f"{name}: no subgraph {number} ({_count(table.subgraphs)})", label, index)


def _signature(graphs: Sequence[Any], signature: Any) -> Iterator[Issue]:
    where = f"signature {_text(signature.signatureKey)}"
    if signature.subgraphIndex >= len(graphs):
        yield Issue("V001", f"{where}: no subgraph {signature.subgraphIndex} ({_count(graphs)})")
        return
    graph = graphs[signature.subgraphIndex]
    tensors = graph.tensors or ()
    for side, entries, numbers in (
        ("input", signature.inputs, graph.inputs),
        ("output", signature.outputs, graph.outputs),
    ):
        of_graph = set(_numbers(numbers))
        for entry in entries or ():
            name, number = _text(entry.name), entry.tensorIndex
            if number >= len(tensors):
                yield Issue("V001", f"{where}, {side} {name}: no tensor {number} ({_count(tensors)})")
            elif number not in of_graph:
                tensor = _text(tensors[number].name) or f"tensor {number}"
                yield Issue("V004", f"{where}: {tensor} is no {side} of its graph", tensor=name)


def stale_contract(source: Source, model: Any) -> Iterator[Issue]:
    """Compare the contract in a file with the tensors of its model.

    Args:
        source: The file.
        model: The model that was read from it.

    Yields:
        Issues V204 and V205.
    """
    if model.format == "onnx":
        text = metadata_of(source).get(contract.METADATA_NAME)
        if text is not None:
            yield from _stale(json.loads(text)["signatures"], model)
        return
    table, spans = detect(source.header, source.name).unpack_header(source.header)
    for entry in table.metadata or ():
        if _text(entry.name) == contract.METADATA_NAME:
            span = spans[entry.buffer]
            data = source.view(span.start, span.size).tobytes()
            yield from _stale(json.loads(data)["signatures"], model)


def _stale(contract_of_file: dict[str, Any], model: Any) -> Iterator[Issue]:
    signatures = {signature.name: signature for signature in model.signatures}
    for name, sides in contract_of_file.items():
        if name not in signatures:
            yield Issue("V204", f"the contract has the signature {name}, which does not exist")
            continue
        signature = signatures[name]
        for side, values in (("inputs", signature.inputs), ("outputs", signature.outputs)):
            for entry in sides.get(side, ()):
                value = values.get(entry["name"])
                if value is None:
                    message = f"the contract has the {side[:-1]} {entry['name']}, which does not exist"
                    yield Issue("V204", message, name)
                    continue
                actual = {"dtype": dtype_name(value), "shape": list(dims_of(value) or ())}
                for key, fact in actual.items():
                    if key in entry and entry[key] != fact:
                        message = f"its {key} is {fact}, and {entry[key]} in the contract"
                        yield Issue("V205", message, name, tensor=entry["name"])


def _numbers(vector: Any) -> list[int]:
    return [] if vector is None else [int(number) for number in vector]


def _count(items: Sequence[Any]) -> str:
    return f"there are {len(items)}"


def _text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
