"""Description of a model: as data for JSON (`summarize`), and as text (`render`)."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.contract import contract_of, role_of
from o2o.formats.tensors import SourceTensor, constants_of, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Format, Model, dims_of, dtype_name, inner_graphs, nested_graphs
from o2o.quantization.metadata import recorded_steps

TITLES: dict[Format, str] = {"circle": "Circle", "tflite": "TFLite", "onnx": "ONNX"}
"""The formats as they are written in text."""
LARGEST = 5  # number of constants in the text
SHOWN_GRAPHS, SHOWN_OPERATORS = 12, 6  # branches, bodies or functions in the text, and operators of each


def summarize(model: Model, largest: int = LARGEST) -> dict[str, Any]:
    """Describe a model as data.

    Args:
        model: A model that was read from a file.
        largest: How many of the largest constants are listed.

    Returns:
        Data for JSON: format, graphs, constants in the file, references to constants in other files,
        metadata, associated files, contract, quantization, history.
    """
    return {
        "format": model.format,
        **({"onnx": _onnx(model)} if model.format == "onnx" else {}),
        "graphs": [_graph(model, graph) for graph in model.graphs],
        "constants": _constants(model, largest),
        "references": _references(model),
        "metadata": [{"name": name, "bytes": len(data)} for name, data in model.metadata],
        "associated_files": [
            {"name": file.info.filename, "bytes": len(file.data)} for file in model.associated_files
        ],
        "contract": contract_of(model),
        "quantization": recorded_steps(model),
        "history": model.history,
    }


def _onnx(model: Model) -> dict[str, Any]:
    """What only ONNX has: versions, exporter and functions."""
    exporter = [str(model.fields.get(key, "")) for key in ("producer_name", "producer_version")]
    return {
        "ir_version": model.fields.get("ir_version"),
        "opsets": dict(model.graphs[0].opset_imports),
        "producer": " ".join(exporter).strip(),
        "functions": [":".join(filter(None, key)) for key in model.functions],
        "function_graphs": [
            {"name": ":".join(filter(None, key)), **_contents(function.graph)}
            for key, function in model.functions.items()
        ],
    }


def _contents(graph: ir.Graph) -> dict[str, Any]:
    """What a graph that no signature calls takes, returns and computes."""
    return {
        "inputs": [value.name for value in graph.inputs],
        "outputs": [value.name for value in graph.outputs],
        "operators": _counts(graph),
    }


def _counts(nodes: Iterable[ir.Node]) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    return dict(sorted(Counter(map(_operator, nodes)).items(), key=lambda item: (-item[1], item[0])))


def _branches(graph: ir.Graph) -> Iterator[dict[str, Any]]:
    """The graphs in the attributes of nodes (ONNX): branches and bodies, an outer one before those in it."""
    for node in graph:
        if node.domain in (DOMAIN, CUSTOM_DOMAIN):
            continue
        for name, attribute in node.attributes.items():
            if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                continue
            is_one = attribute.type == ir.AttributeType.GRAPH
            for inner in [attribute.as_graph()] if is_one else attribute.as_graphs():
                result = next((value.name for value in node.outputs if value.name), None)
                place = {"operator": _operator(node), "result": result, "attribute": name, "name": inner.name}
                yield {**place, **_contents(inner)}
                yield from _branches(inner)


def _graph(model: Model, graph: ir.Graph) -> dict[str, Any]:
    nodes = [*graph, *(node for outer in graph for inner in nested_graphs(outer) for node in inner)]
    branches = list(_branches(graph))
    return {
        "name": graph.name,
        "label": model.label(graph),
        "signatures": [signature.name for signature in model.signatures_of(graph)],
        "run_by": [
            f"{node.op_type} of {model.label(outer)}"
            for outer in model.graphs
            for node in outer
            if any(inner is graph for inner in inner_graphs(node))
        ],
        "inputs": [_io_value(model, graph, value) for value in graph.inputs],
        "outputs": [_io_value(model, graph, value) for value in graph.outputs],
        "operators": _counts(nodes),
        **({"branches": branches} if branches else {}),
    }


def _operator(node: ir.Node) -> str:
    if node.domain == CUSTOM_DOMAIN:
        return f"CUSTOM {node.op_type}"
    return node.op_type if node.domain in ("", DOMAIN) else f"{node.domain}.{node.op_type}"


def _io_value(model: Model, graph: ir.Graph, value: ir.Value) -> dict[str, Any]:
    public = {
        name: None
        for signature in model.signatures_of(graph)
        for names in (signature.inputs, signature.outputs)
        for name, other in names.items()
        if other is value and name != value.name
    }
    entry: dict[str, Any] = {"name": value.name, "dtype": dtype_name(value), "shape": _shape(value)}
    if public:
        entry["public"] = list(public)
    if (role := role_of(value)) is not None:
        fields = {"role": role.kind} | {key: field for key, field in asdict(role).items() if key != "kind"}
        entry |= {key: field for key, field in fields.items() if field is not None}
    if (quantization := value.meta.get("fields", {}).get("quantization")) is not None:
        scale = getattr(quantization, "scale", None)
        if scale is not None and len(scale):
            entry["scales"] = len(scale)
    return entry


def _shape(value: ir.Value) -> list[int | str]:
    return list(dims_of(value) or ())


def _constants(model: Model, count: int) -> dict[str, Any]:
    """The constants of the model.

    Their form is `inside` the file, `by offset` behind the 2 GiB of a FlatBuffer, or `external` (ONNX).
    """
    users: dict[Hashable, list[tuple[str, ir.Value]]] = defaultdict(list)
    form = "inside"
    for label, value, tensor in _constant_values(model):
        if not isinstance(tensor, UnboundTensor):
            users[storage_key(tensor)].append((label, value))
        if isinstance(tensor, SourceTensor) and tensor.span.outside:
            form = "external" if model.format == "onnx" else "by offset"
    sizes = {key: uses[0][1].const_value.nbytes for key, uses in users.items()}  # type: ignore[union-attr]
    by_dtype: Counter[str] = Counter()
    for key, uses in users.items():
        by_dtype[_dtype(uses[0][1])] += sizes[key]
    largest = sorted(users, key=lambda key: (-sizes[key], users[key][0][1].name or ""))[:count]
    return {
        "count": sum(map(len, users.values())),
        "buffers": len(users),
        "bytes": sum(sizes.values()),
        "form": form,
        "shared": sum(len(uses) > 1 for uses in users.values()),
        "saved": sum(sizes[key] * (len(uses) - 1) for key, uses in users.items()),
        "by_dtype": dict(sorted(by_dtype.items(), key=lambda item: -item[1])),
        "largest": [
            {
                "name": users[key][0][1].name,
                "bytes": sizes[key],
                "dtype": _dtype(users[key][0][1]),
                "shape": _shape(users[key][0][1]),
                "graphs": list(dict.fromkeys(label for label, _ in users[key])),
            }
            for key in largest
        ],
    }


def _dtype(value: ir.Value) -> str:
    """The dtype of a constant; of its tensor, if the value declares none (`Constant` of ONNX)."""
    tensor = value.const_value
    if (
        value.dtype is None
        and value.type is None
        and tensor is not None
        and "type" not in value.meta.get("fields", {})
    ):
        return dtype_name(ir.Value(type=ir.TensorType(tensor.dtype)))
    return dtype_name(value)


def _references(model: Model) -> dict[str, Any]:
    """The constants in a checkpoint: number of tensors, files, and bytes after binding."""
    external = {
        tensor.key: tensor for _, _, tensor in _constant_values(model) if isinstance(tensor, UnboundTensor)
    }
    return {
        "count": len(external),
        "bytes": sum(tensor.nbytes for tensor in external.values()),
        "files": sorted({str(tensor.path) for tensor in external.values()}),
    }


def _constant_values(model: Model) -> Iterator[tuple[str, ir.Value, ir.TensorProtocol]]:
    for graph in model.all_graphs():
        seen: set[int] = set()
        for value in constants_of(graph):
            if value.const_value is not None and id(value) not in seen:
                seen.add(id(value))
                yield model.label(graph), value, value.const_value


# ----------------------------------------------------------------------------------------------------


def render(summary: dict[str, Any], source: str, size: int) -> str:
    """Format a description as text.

    Args:
        summary: From `summarize`.
        source: The name of the file.
        size: Bytes of the file.

    Returns:
        Lines of text.
    """
    graphs = summary["graphs"]
    title = TITLES[summary["format"]]
    lines = [f"{source}: {title}, {size:,} bytes, {counted(len(graphs), 'subgraph')}"]
    if "onnx" in summary:
        lines += _onnx_lines(summary["onnx"])
    for index, graph in enumerate(graphs):
        lines += ["", _heading(index, graph)]
        sides = ("inputs", "outputs")
        lines += _table([(side, _row(k, entry)) for side in sides for k, entry in enumerate(graph[side])])
        operators = [f"{name} {count}" for name, count in graph["operators"].items()]
        lines += _wrapped(f"operators {sum(graph['operators'].values())}:", operators)
        lines += _branch_lines(graph.get("branches", ()))
    lines += ["", *_constant_lines(summary["constants"]), *_reference_lines(summary["references"])]
    for key in ("metadata", "associated_files"):
        if summary[key]:
            entries = [f"{entry['name']} ({entry['bytes']:,} bytes)" for entry in summary[key]]
            lines += ["", *_wrapped(f"{key.replace('_', ' ')}:", entries, indent="")]
    signatures = summary["contract"]["signatures"]
    lines += ["", f"contract: {', '.join(signatures) or 'none (no tensor has a role)'}"]
    lines += [f"quantization: {_quantization(step)}" for step in summary["quantization"]]
    lines += ["", "history:" if summary["history"] else "history: none"]
    lines += [f"  {index}  {_history(entry)}" for index, entry in enumerate(summary["history"], 1)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _onnx_lines(entry: dict[str, Any]) -> list[str]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in entry["opsets"].items())
    producer = f", from {entry['producer']}" if entry["producer"] else ""
    functions = ["  functions:"] if entry["functions"] else []
    functions += _limited([_line(graph["name"], graph) for graph in entry["function_graphs"]])
    return [f"  IR version {entry['ir_version']}, opsets: {opsets}{producer}", *functions]


def _branch_lines(branches: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        _line(f"{branch['attribute']} of {branch['operator']} {branch['result'] or ''}".rstrip(), branch)
        for branch in branches
    ]
    return ["  branches and bodies:", *_limited(lines)] if lines else []


def _line(title: str, graph: dict[str, Any]) -> str:
    """A graph in one line: what it takes, returns and computes."""
    counts = graph["operators"]
    operators = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:SHOWN_OPERATORS])
    more = ", ..." if len(counts) > SHOWN_OPERATORS else ""
    signature = f"({', '.join(graph['inputs'])}) -> ({', '.join(graph['outputs'])})"
    count = counted(sum(counts.values()), "operator")
    return f"    {title} {signature}: {count}{f': {operators}{more}' if operators else ''}"


def _limited(lines: Sequence[str]) -> list[str]:
    hidden = len(lines) - SHOWN_GRAPHS
    rest = [f"    ... and {hidden} more (--json lists them)"] if hidden > 0 else []
    return [*lines[:SHOWN_GRAPHS], *rest]


def _heading(index: int, graph: dict[str, Any]) -> str:
    heading = f"subgraph {index}" + (f" {graph['name']!r}" if graph["name"] else "")
    if graph["signatures"]:
        heading += f", signature {', '.join(graph['signatures'])}"
    return heading + (f", run by {'; '.join(graph['run_by'])}" if graph["run_by"] else "")


def _row(index: int, entry: dict[str, Any]) -> list[str]:
    shape = f"[{','.join(map(str, entry['shape']))}]"
    notes = [entry["role"]] if "role" in entry else []
    notes += [f"layer {entry['layer']}"] if "layer" in entry else []
    notes += [entry["layout"]] if "layout" in entry else []
    notes += [f"{rule} {entry[rule]}" for rule in ("window", "chunk", "capacity") if rule in entry]
    notes += [entry["rope"]] if "rope" in entry else []
    notes += [counted(entry["scales"], "scale")] if "scales" in entry else []
    notes += [f"called {', '.join(entry['public'])}"] if "public" in entry else []
    return [str(index), entry["name"] or "(no name)", entry["dtype"], shape, ", ".join(notes)]


def _table(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Align rows in columns, the first one to the right. A title stands in front of its first row."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*(row for _, row in rows), strict=True)]
    lines = []
    last = ""
    for title, row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].rjust(widths[0])
        lines.append(f"  {'' if title == last else title:<8} {'  '.join(cells)}")
        last = title
    return lines


def _constant_lines(summary: dict[str, Any]) -> list[str]:
    if not summary["count"]:
        return ["constants: none"]
    by_dtype = ", ".join(f"{name} {size:,}" for name, size in summary["by_dtype"].items())
    buffers = counted(summary["buffers"], "buffer")
    where = {
        "inside": "inside",
        "by offset": "by offset, beyond what FlatBuffers address",
        "external": "as external data",
    }[summary["form"]]
    lines = [f"constants: {summary['count']} in {buffers}, {summary['bytes']:,} bytes {where} ({by_dtype})"]
    if summary["shared"]:
        lines.append(
            f"  {counted(summary['shared'], 'buffer')} shared, which saves {summary['saved']:,} bytes"
        )
    rows = [
        [
            f"{entry['bytes']:,}",
            entry["name"] or "(no name)",
            entry["dtype"],
            f"[{','.join(map(str, entry['shape']))}]",
            "in " + ", ".join(entry["graphs"]),
        ]
        for entry in summary["largest"]
    ]
    return lines + _table([("largest", row) for row in rows])


def _reference_lines(summary: dict[str, Any]) -> list[str]:
    if not summary["count"]:
        return []
    tensors = counted(summary["count"], "tensor")
    title = f"references: {tensors}, {summary['bytes']:,} bytes when they are bound, in"
    return _wrapped(title, summary["files"], indent="")


def _wrapped(title: str, items: Sequence[str], indent: str = "  ", width: int = 100) -> list[str]:
    """Format `title item, item, ...` in lines of at most `width` characters."""
    lines, line = [], f"{indent}{title}"
    for index, item in enumerate(items):
        text = f" {item}" + ("," if index < len(items) - 1 else "")
        if len(line) + len(text) > width:
            lines.append(line)
            line = f"{indent}   "
        line += text
    return [*lines, line]


def _quantization(step: dict[str, Any]) -> str:
    parts = ", ".join(f"{part} {step.get(part)}" for part in ("matrices", "embedding", "head"))
    counts = ", ".join(f"{count} of {scheme}" for scheme, count in step.get("tensors", {}).items())
    return f"{step.get('recipe')} ({parts}): {counts}"


def _history(entry: dict[str, Any]) -> str:
    if "merged" in entry:
        inner = "; ".join(_history(step) for step in entry.get("history", ())) or "nothing"
        return f"merged {entry['merged']}, after: {inner}"
    arguments = shlex.join(map(str, entry.get("arguments", ())))
    version = f"  ({entry['version']})" if "version" in entry else ""
    return f"{entry.get('filter', entry)} {arguments}".rstrip() + version
