"""The differences of two models, as data for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from o2o.contract import role_of
from o2o.diff.constants import distance, same_bytes
from o2o.diff.matching import Matching, match_graphs, operator_name, options_of
from o2o.formats.tensors import is_constant, is_quantized, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import (
    CUSTOM_DOMAIN,
    DOMAIN,
    Model,
    Signature,
    captured_values,
    dims_of,
    dtype_name,
    quantization_constants,
)

Json = dict[str, Any]
Pair = tuple[ir.Graph, ir.Graph]


def diff(first: Model, second: Model) -> Json:
    """Compare two models.

    Args:
        first: A model.
        second: Another.

    Returns:
        Data for JSON. `same` is true if nothing differs; then all lists are empty.
    """
    pairs, unmatched = _graph_pairs(first, second)
    graphs, constants = [], _Constants()
    for pair in pairs:
        for a, b, label, matching in _matched(first, second, *pair):
            entry = _graph(second, a, b, label, matching)
            if entry is not None:
                graphs.append(entry)
            constants.compare(a, b, matching)
    result: Json = {
        "format": [first.format, second.format] if first.format != second.format else None,
        "signatures": _signatures(first, second),
        "contract": _contract(first, second),
        "graphs": graphs,
        **unmatched,
        "constants": constants.as_json(),
        "metadata": _metadata(first, second),
        "history": _history(first.history, second.history),
    }
    return {"same": not any(map(_differs, result.values())), **result}


def _differs(part: Any) -> bool:
    """Whether a part of the result holds a difference: any list that is not empty."""
    if isinstance(part, dict):
        return any(_differs(item) for item in part.values() if isinstance(item, dict | list))
    return bool(part)


# ---- graphs and signatures -----------------------------------------------------------------------------


def _graph_pairs(first: Model, second: Model) -> tuple[list[Pair], Json]:
    """The graphs that correspond: by signature, by name, by order. Functions of ONNX by their identifiers."""
    pairs: dict[ir.Graph, ir.Graph] = {}

    def pair(a: ir.Graph, b: ir.Graph) -> None:
        if a not in pairs and b not in pairs.values():
            pairs[a] = b

    for one, other in _signature_pairs(first, second):
        pair(one.graph, other.graph)
    by_name = {graph.name: graph for graph in second.graphs if graph.name}
    for graph in first.graphs:
        if graph.name in by_name:
            pair(graph, by_name[graph.name])
    left = [graph for graph in first.graphs if graph not in pairs]
    right = [graph for graph in second.graphs if graph not in pairs.values()]
    if len(left) == len(right):
        for a, b in zip(left, right, strict=True):
            pair(a, b)
    some, others = ({key: of.graph for key, of in model.functions.items()} for model in (first, second))
    functions = [(graph, others[key]) for key, graph in some.items() if key in others]
    return [*pairs.items(), *functions], {
        "removed_graphs": [
            *(_size(first, graph) for graph in first.graphs if graph not in pairs),
            *(_size(first, graph) for key, graph in some.items() if key not in others),
        ],
        "added_graphs": [
            *(_size(second, graph) for graph in second.graphs if graph not in pairs.values()),
            *(_size(second, graph) for key, graph in others.items() if key not in some),
        ],
    }


def _matched(
    first: Model, second: Model, a: ir.Graph, b: ir.Graph
) -> Iterator[tuple[ir.Graph, ir.Graph, str, Matching]]:
    """Match two graphs, and the graphs in attributes of nodes that match (ONNX). Each pair has a label."""
    pending = [(a, b, second.label(b), match_graphs(a, b, _known_values(first, second, a, b)))]
    while pending:
        a, b, label, matching = pending.pop(0)
        yield a, b, label, matching
        for x, y in matching.nodes.items():
            if x.domain in (DOMAIN, CUSTOM_DOMAIN):
                continue
            outer = [(v, matching.values[v]) for v in captured_values(x) if v in matching.values]
            for (name, one), (_, other) in zip(_inner(x), _inner(y), strict=False):
                known = [
                    *_value_pairs(_by_name(one.inputs), _by_name(other.inputs)),
                    *_value_pairs(_by_name(one.outputs), _by_name(other.outputs)),
                ]
                inner_label = f"{label}, {name} of {y.op_type} {_name(next(iter(y.outputs), None))}"
                pending.append(
                    (one, other, inner_label, match_graphs(one, other, known, dict(outer).items()))
                )


def _inner(node: ir.Node) -> list[tuple[str, ir.Graph]]:
    """The graphs in the attributes of a node, with the names of the attributes, in their order."""
    graphs = []
    for name in sorted(node.attributes):
        item = node.attributes[name]
        if item.type == ir.AttributeType.GRAPH:
            graphs.append((name, item.as_graph()))
        elif item.type == ir.AttributeType.GRAPHS:
            graphs += [(f"{name} {number}", inner) for number, inner in enumerate(item.as_graphs())]
    return graphs


def _by_name(values: Iterable[ir.Value]) -> dict[str, ir.Value]:
    return {value.name or "": value for value in values}


def _size(model: Model, graph: ir.Graph) -> Json:
    return {"name": model.label(graph), "operators": len(graph)}


def _signature_pairs(first: Model, second: Model) -> list[tuple[Signature, Signature]]:
    """The signatures of the same name; and the last one on each side, if only one is left."""
    by_name = {signature.name: signature for signature in second.signatures}
    pairs = [(s, by_name[s.name]) for s in first.signatures if s.name in by_name]
    left = [s for s in first.signatures if s.name not in by_name]
    right = [s for s in second.signatures if all(s is not b for _, b in pairs)]
    return [*pairs, (left[0], right[0])] if len(left) == len(right) == 1 else pairs


def _known_values(
    first: Model, second: Model, a: ir.Graph, b: ir.Graph
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The inputs and outputs of two graphs that correspond: by names in signatures, roles, names, order."""
    pairs = _signature_pairs(first, second)
    for one, other in pairs:
        if one.graph is a and other.graph is b:
            yield from _value_pairs(one.inputs, other.inputs)
            yield from _value_pairs(one.outputs, other.outputs)
    for values, others in ((a.inputs, b.inputs), (a.outputs, b.outputs)):
        yield from _value_pairs(_by_name(values), _by_name(others))


def _value_pairs(
    some: Mapping[str, ir.Value], others: Mapping[str, ir.Value]
) -> Iterator[tuple[ir.Value, ir.Value]]:
    left, right = dict(some), dict(others)
    for name in list(left):
        if name in right:
            yield left.pop(name), right.pop(name)
    by_role = {role: name for name, value in right.items() if (role := _identity(value)) is not None}
    for name, value in list(left.items()):
        if (role := _identity(value)) is not None and role in by_role:
            yield left.pop(name), right.pop(by_role.pop(role))
    if len(left) == len(right):
        yield from zip(left.values(), right.values(), strict=True)


def _identity(value: ir.Value) -> tuple[str, int | None] | None:
    role = role_of(value)
    return None if role is None else (role.kind, role.layer)


def _signatures(first: Model, second: Model) -> Json:
    pairs = _signature_pairs(first, second)
    changed = []
    for a, b in pairs:
        entry: Json = {"name": b.name}
        if a.name != b.name:
            entry["renamed"] = [a.name, b.name]
        for side, some, others in (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs)):
            if changes := _interface(some, others):
                entry[side] = changes
        if len(entry) > 1:
            changed.append(entry)
    left, right = ({id(side[k]) for side in pairs} for k in (0, 1))
    return {
        "removed": [s.name for s in first.signatures if id(s) not in left],
        "added": [s.name for s in second.signatures if id(s) not in right],
        "changed": changed,
    }


def _interface(some: Mapping[str, ir.Value], others: Mapping[str, ir.Value]) -> list[Json]:
    """The changes of inputs or outputs, by their names in a signature."""
    changes: list[Json] = []
    pairs = {id(a): b for a, b in _value_pairs(some, others)}
    names = {id(value): name for name, value in others.items()}
    for name, value in some.items():
        other = pairs.get(id(value))
        if other is None:
            changes.append({"name": name, "removed": _tensor(value)})
            continue
        before, after = _tensor(value), _tensor(other)
        before["name"], after["name"] = name, names[id(other)]
        if fields := _changed(before, after):
            changes.append({"name": name, "changed": fields})
    matched = {id(other) for other in pairs.values()}
    changes += [
        {"name": name, "added": _tensor(value)} for name, value in others.items() if id(value) not in matched
    ]
    if not changes and list(some) != list(others):
        changes.append({"name": None, "order": [list(some), list(others)]})
    return changes


def _contract(first: Model, second: Model) -> list[Json]:
    """The inputs and outputs whose roles differ, of signatures that both models have."""
    changes = []
    for a, b in _signature_pairs(first, second):
        for some, others in ((a.inputs, b.inputs), (a.outputs, b.outputs)):
            names = {id(value): name for name, value in others.items()}
            for x, y in _value_pairs(some, others):
                if role_of(x) != role_of(y):
                    changes.append({"signature": b.name, "name": names[id(y)], "role": [_role(x), _role(y)]})
    return changes


def _role(value: ir.Value) -> str | None:
    """A role in words: kind, layer, layout."""
    role = role_of(value)
    if role is None:
        return None
    parts = (role.kind, None if role.layer is None else f"layer {role.layer}", role.layout)
    return ", ".join(part for part in parts if part is not None)


def _changed(before: Json, after: Json) -> Json:
    """The entries that differ: before and after, by name."""
    names = dict.fromkeys((*before, *after))
    return {
        name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)
    }


def _tensor(value: ir.Value) -> Json:
    """What is compared of a tensor: its dtype and shape, and how it is quantized."""
    entry: Json = {"dtype": dtype_name(value), "shape": _shape(value)}
    if is_quantized(value):
        entry["quantization"] = _quantization(value)
    if value.meta.get("fields", {}).get("isVariable"):
        entry["variable"] = True
    return entry


def _shape(value: ir.Value) -> list[int | str] | None:
    if (dims := dims_of(value)) is None:
        return None
    dynamic = value.meta.get("fields", {}).get("shapeSignature")
    return list(dims) if dynamic is None else [int(dim) for dim in dynamic]


def _quantization(value: ir.Value) -> str:
    """Scales in words: how many, along which axis, and a digest of them."""
    quantization = value.meta["fields"]["quantization"]
    if quantization_constants(value):
        return f"blocks of {getattr(quantization.details, 'blockSize', '?')}"
    scales, zeros = quantization.scale, quantization.zeroPoint
    one = (
        f"scale {float(scales[0]):.7g}"
        if len(scales) == 1
        else f"{len(scales)} scales, first {float(scales[0]):.7g}"
    )
    zero = f", zero point {int(zeros[0])}" if zeros is not None and len(zeros) and zeros.any() else ""
    axis = f" along axis {quantization.quantizedDimension}" if len(scales) > 1 else ""
    return f"{one}{axis}{zero}"


# ---- operators and tensors -----------------------------------------------------------------------------


def _graph(second: Model, a: ir.Graph, b: ir.Graph, label: str, matching: Matching) -> Json | None:
    """The differences of two graphs; None without any."""
    matched = set(matching.nodes.values())
    removed = [_operator(node) for node in a if node not in matching.nodes]
    added = [_operator(node) for node in b if node not in matched]
    changed = [
        {**_operator(y), "changes": changes}
        for x, y in matching.nodes.items()
        if (changes := _operator_changes(x, y, matching))
    ]
    public = {
        id(value) for s in second.signatures_of(b) for value in (*s.inputs.values(), *s.outputs.values())
    }
    tensors, renamed = _tensor_changes(matching, public)
    moved = _moved(a, b, matching)
    if not (removed or added or changed or tensors or renamed or moved or a.name != b.name):
        return None
    return {
        "name": label,
        "renamed": [[a.name, b.name]] if a.name != b.name else [],
        "operators": {
            "count": {"before": len(a), "after": len(b), "matched": len(matching.nodes)},
            "removed": removed,
            "added": added,
            "changed": changed,
            "moved": moved,
        },
        "tensors": {"changed": tensors, "renamed": renamed},
    }


def _operator(node: ir.Node) -> Json:
    return {
        "operator": operator_name(node),
        "name": next((value.name for value in node.outputs if value.name), None),
        "inputs": [None if value is None else value.name for value in node.inputs],
        "outputs": [value.name for value in node.outputs],
    }


def _operator_changes(a: ir.Node, b: ir.Node, matching: Matching) -> list[str]:
    """What differs between two operators that match, a sentence each."""
    before, after = (options_of(node, with_graphs=False) for node in (a, b))
    if [name for name, _ in _inner(a)] != [name for name, _ in _inner(b)]:
        before["graphs"], after["graphs"] = ([name for name, _ in _inner(node)] for node in (a, b))
    changes = [
        f"option {name}: {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    if (a.version or 1) != (b.version or 1):
        changes.append(f"version: {a.version or 1} -> {b.version or 1}")
    operands = [[*node.inputs] for node in (a, b)]
    for values in operands:
        while values and values[-1] is None:
            values.pop()
    if len(operands[0]) != len(operands[1]):
        changes.append(f"operands: {len(operands[0])} -> {len(operands[1])}")
    for k, (x, y) in enumerate(zip(*operands, strict=False)):
        if (x is None) != (y is None) or (
            x is not None and matching.values.get(x) is not y and not _same_constants(x, y)
        ):
            changes.append(f"operand {k}: {_name(x)} -> {_name(y)}")
    if len(a.outputs) != len(b.outputs):
        changes.append(f"results: {len(a.outputs)} -> {len(b.outputs)}")
    return changes


def _same_constants(x: ir.Value, y: ir.Value | None) -> bool:
    """Whether both are constants. How they differ is said with the constants."""
    return y is not None and is_constant(x) and is_constant(y)


def _name(value: ir.Value | None) -> str:
    return "none" if value is None else value.name or "(no name)"


def _tensor_changes(matching: Matching, public: Collection[int]) -> tuple[list[Json], list[list[str | None]]]:
    """The computed tensors that differ, except those of signatures, and those with other names."""
    changed: list[Json] = []
    renamed: list[list[str | None]] = []
    for a, b in matching.values.items():
        if is_constant(a) or is_constant(b) or a in matching.outer:
            continue
        if (fields := _changed(_tensor(a), _tensor(b))) and id(b) not in public:
            changed.append({"name": b.name, "changed": fields})
        if a.name != b.name:
            renamed.append([a.name, b.name])
    return changed, renamed


def _moved(a: ir.Graph, b: ir.Graph, matching: Matching) -> list[str | None]:
    """Operators that match and run in another order: all but the longest part in the same order."""
    from bisect import bisect_left

    places = {node: index for index, node in enumerate(b)}
    order = [(places[matching.nodes[node]], node) for node in a if node in matching.nodes]
    tails: list[int] = []
    at: list[int] = []
    previous: list[int] = []
    for index, (place, _) in enumerate(order):
        length = bisect_left(tails, place)
        previous.append(at[length - 1] if length else -1)
        tails[length:] = [place, *tails[length + 1 :]]
        at[length:] = [index, *at[length + 1 :]]
    stays: set[int] = set()
    last = at[-1] if at else -1
    while last >= 0:
        stays.add(last)
        last = previous[last]
    return [
        next((value.name for value in node.outputs if value.name), None)
        for index, (_, node) in enumerate(order)
        if index not in stays
    ]


# ---- constants -----------------------------------------------------------------------------------------


class _Constants:
    """The constants of all graphs. Each pair of buffers is compared once."""

    def __init__(self) -> None:
        self.entries: dict[Hashable, Json | None] = {}
        self.removed: dict[Hashable, Json] = {}
        self.added: dict[Hashable, Json] = {}
        self.equal = 0

    def compare(self, a: ir.Graph, b: ir.Graph, matching: Matching) -> None:
        pairs = {x: y for x, y in matching.values.items() if is_constant(x) and is_constant(y)}
        taken = set(pairs.values())
        others = {v.name: v for v in b.initializers.values() if is_constant(v) and v not in taken}
        for value in a.initializers.values():
            if is_constant(value) and value not in pairs:
                if value.name in others:
                    pairs[value] = others.pop(value.name)
                else:
                    self.removed.setdefault(_description(value), _constant(value))
        taken = set(pairs.values())
        for value in b.initializers.values():
            if is_constant(value) and value not in taken:
                self.added.setdefault(_description(value), _constant(value))
        for x, y in pairs.items():
            key = x.name, y.name, _key(x), _key(y)
            if key not in self.entries:
                self.entries[key] = _constant_changes(x, y)
                self.equal += self.entries[key] is None

    def as_json(self) -> Json:
        return {
            "count": {"compared": len(self.entries), "equal": self.equal},
            "changed": [entry for entry in self.entries.values() if entry is not None],
            "removed": list(self.removed.values()),
            "added": list(self.added.values()),
        }


def _key(value: ir.Value) -> Hashable:
    assert value.const_value is not None
    return value.name, storage_key(value.const_value)


def _description(value: ir.Value) -> Hashable:
    """Equal for constants that look the same: one of several graphs is enough."""
    return value.name, dtype_name(value), tuple(_shape(value) or ())


def _constant(value: ir.Value) -> Json:
    assert value.const_value is not None
    return {"name": value.name, **_tensor(value), "bytes": value.const_value.nbytes}


def _constant_changes(a: ir.Value, b: ir.Value) -> Json | None:
    """How two constants differ; None if they are equal."""
    assert a.const_value is not None
    assert b.const_value is not None
    before, after = _tensor(a), _tensor(b)
    before["name"], after["name"] = a.name, b.name
    if isinstance(a.const_value, UnboundTensor) != isinstance(b.const_value, UnboundTensor):
        before["stored"], after["stored"] = (_stored(value) for value in (a, b))
    fields = _changed(before, after)
    references = [quantization_constants(value) for value in (a, b)]
    if same_bytes(a.const_value, b.const_value) and not _other_scales(a, b, references):
        return {"name": b.name, "changed": fields} if fields else None
    entry: Json = {"name": b.name, "changed": fields}
    apart = distance(a, b)
    if apart is not None:
        entry["distance"] = apart.as_json()
    return entry


def _other_scales(a: ir.Value, b: ir.Value, references: Sequence[Mapping[str, ir.Value]]) -> bool:
    if not (is_quantized(a) and is_quantized(b)):
        return False
    for field in references[0].keys() & references[1].keys():
        x, y = references[0][field].const_value, references[1][field].const_value
        if x is not None and y is not None and not same_bytes(x, y):
            return True
    one, other = (value.meta["fields"]["quantization"] for value in (a, b))
    return any(
        list(getattr(one, name) if getattr(one, name) is not None else ())
        != list(getattr(other, name) if getattr(other, name) is not None else ())
        for name in ("scale", "zeroPoint")
    )


def _stored(value: ir.Value) -> str:
    tensor = value.const_value
    return f"in {tensor.path}" if isinstance(tensor, UnboundTensor) else "in the file"


# ---- the rest ------------------------------------------------------------------------------------------


def _metadata(first: Model, second: Model) -> list[Json]:
    """Entries of metadata, associated files and fields of the model that differ."""
    before, after = _entries(first), _entries(second)
    return [
        {
            "name": name,
            "bytes": [len(side[name]) if name in side else None for side in (before, after)],
        }
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _entries(model: Model) -> dict[str, bytes]:
    counts: Counter[str] = Counter()
    entries: dict[str, bytes] = {}
    for name, data in _named_data(model):
        counts[name] += 1
        entries[name if counts[name] == 1 else f"{name} ({counts[name]})"] = data
    return entries


def _named_data(model: Model) -> Iterable[tuple[str, bytes]]:
    yield from model.metadata
    yield from ((f"file {file.info.filename}", file.data) for file in model.associated_files)
    for name, item in model.fields.items():
        yield f"field {name}", item if isinstance(item, bytes) else str(item).encode()


def _history(before: Sequence[Json], after: Sequence[Json]) -> Json:
    shared = next(
        (k for k, (a, b) in enumerate(zip(before, after, strict=False)) if a != b),
        min(len(before), len(after)),
    )
    return {"shared": shared, "removed": list(before[shared:]), "added": list(after[shared:])}
