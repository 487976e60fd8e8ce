"""References between operators and tensors, and the names of signatures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from o2o.formats.tensors import is_constant, source_tensors
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model, Signature, dims_of, quantization_constants
from o2o.rewriting.dead_code_elimination import live_nodes
from o2o.streams.external_file import ExternalFile
from o2o.verifier.issue import Issue, Places


def verify_graph(model: Model, graph: ir.Graph) -> Iterator[Issue]:
    """Check the references and constants of a graph.

    Args:
        model: The model of `graph`.
        graph: The graph.

    Yields:
        Issues V002, V003, V007, V008, V009 and V010.
    """
    places = Places(model, graph)
    yield from _constants(graph, places)
    yield from _names(graph, places)
    yield from _order(graph, places)
    yield from _unused(graph, places)


def verify_signatures(model: Model) -> Iterator[Issue]:
    """Check the names of signatures, and that they have all inputs and outputs.

    Args:
        model: The model.

    Yields:
        Issues V005 and V006.
    """
    counts = Counter(signature.name for signature in model.signatures)
    for name, count in counts.items():
        if count > 1:
            yield Issue("V006", f"{count} signatures have the name {name!r}")
    for signature in model.signatures:
        yield from _incomplete(signature)


def verify_external_data(model: Model) -> Iterator[Issue]:
    """Check that the files beside a model exist, and are long enough.

    Args:
        model: Any model.

    Yields:
        Issues V002 and V012, one for each file.
    """
    needed: dict[Path, int] = {}
    for graph in model.all_graphs():
        for value in graph.initializers.values():
            for part in source_tensors(value.const_value) if value.const_value is not None else ():
                if isinstance(part.source, ExternalFile):
                    path, end = part.source.path, part.span.start + part.span.size
                    needed[path] = max(end, needed.get(path, 0))
    for path, end in needed.items():
        if not path.exists():
            yield Issue("V012", f"{path} does not exist: bind.weights.py reads weights from a checkpoint")
        elif (size := path.stat().st_size) < end:
            yield Issue("V002", f"{path} has {size:,} bytes, and the model reads {end:,}")


def _incomplete(signature: Signature) -> Iterator[Issue]:
    graph = signature.graph
    for side, values, public in (
        ("input", graph.inputs, signature.inputs),
        ("output", graph.outputs, signature.outputs),
    ):
        named = {id(value) for value in public.values()}
        for value in values:
            if id(value) not in named:
                message = f"the signature {signature.name} lacks this {side} of its graph"
                yield Issue("V005", message, signature.name, tensor=value.name)


def _constants(graph: ir.Graph, places: Places) -> Iterator[Issue]:
    for value in (*graph.inputs, *graph.initializers.values()):
        tensor, fields = value.const_value, value.meta.get("fields", {})
        if tensor is None or isinstance(tensor, UnboundTensor) or value.dtype in (None, ir.DataType.STRING):
            continue
        shape = dims_of(value) or ()
        sizes = tuple(tensor.shape.numpy())
        fits = tensor.dtype == value.dtype and len(sizes) == len(shape)
        fits &= all(
            dim in (size, "?") or isinstance(dim, str) for dim, size in zip(shape, sizes, strict=False)
        )
        if not fits and "sparsity" not in fields and "type" not in fields:
            message = f"{tensor.nbytes} bytes for {value.dtype} {list(shape)}"
            yield places.of("V002", value, message)


def _names(graph: ir.Graph, places: Places) -> Iterator[Issue]:
    values = [*graph.inputs, *graph.initializers.values(), *graph.meta.get("loose", ())]
    values += [value for node in graph for value in node.outputs]
    counts: Counter[str] = Counter()
    for value in dict.fromkeys(values):
        _, raw = value.meta.get("name", (None, value.name))
        if raw:
            counts[raw] += 1
    for name, count in counts.items():
        if count > 1:
            yield Issue("V003", f"{count} tensors have this name", places.label, tensor=name)


def _order(graph: ir.Graph, places: Places) -> Iterator[Issue]:
    computed: set[ir.Node] = set()
    for node in graph:
        for operand, value in enumerate(node.inputs):
            if value is None:
                continue
            producer = value.producer()
            if producer is not None and producer.graph is not graph:
                continue  # a value of an outer graph (ONNX)
            if producer is not None and producer not in computed:
                yield places.at(
                    "V007", node, f"operand {operand}, {value.name}, is computed by a later operator"
                )
            elif producer is None and not _has_source(value):
                yield places.at("V008", node, f"nothing computes operand {operand}, {value.name}")
        computed.add(node)
    for value in graph.outputs:
        if value.producer() is None and not _has_source(value):
            yield places.of("V008", value, "nothing computes this output")


def _has_source(value: ir.Value) -> bool:
    """Whether a value without a producer is an input, a constant or a variable."""
    fields = value.meta.get("fields", {})
    return value.is_graph_input() or value.const_value is not None or bool(fields.get("isVariable"))


def _unused(graph: ir.Graph, places: Places) -> Iterator[Issue]:
    live = live_nodes(graph)
    for node in graph:
        if node not in live:
            yield places.at("V009", node, "no output depends on it (gc.py removes it)")
    references = {
        id(v) for value in graph.initializers.values() for v in quantization_constants(value).values()
    }
    for value in (*graph.initializers.values(), *graph.meta.get("loose", ())):
        if not value.uses() and not value.is_graph_output() and id(value) not in references:
            kind = "constant" if is_constant(value) else "tensor"
            yield places.of("V010", value, f"nothing uses this {kind} (gc.py removes it)")
