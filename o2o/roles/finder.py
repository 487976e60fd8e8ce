"""The roles of a model's inputs and outputs: by data flow, then by names, then by what the user says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from o2o.cli.text import listed
from o2o.contract import Role, role_of
from o2o.formats.tensors import is_constant
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, Signature, dims_of, shape_of
from o2o.operators.attention import takes_as_cache
from o2o.operators.traits import LAYOUT_OPS
from o2o.roles.attention_blocks import MATMULS, AttentionBlock, Trace, attention_blocks
from o2o.roles.axis_labels import after, layout_of
from o2o.roles.flow import Point, Step, all_operands, graph_inputs, origin, producer, sources, steps
from o2o.roles.names import role_by_name
from o2o.roles.onnx_caches import cache_pairs, cache_roles, written_layout
from o2o.roles.onnx_inputs import input_roles
from o2o.roles.positions import integer_inputs

_COPIES = (*LAYOUT_OPS, "CAST", "QUANTIZE", "DEQUANTIZE")  # the result is operand 0 in another form

_COMMAND = "sign.contract.py"
BY_FLOW, BY_NAME, GIVEN, KNOWN = "data flow", "name", "given", "contract"


@dataclass
class Findings:
    """The roles of one signature.

    Attributes:
        signature: The signature.
        roles: The role of each input and output that has one.
        reasons: For each of them: data flow, name, given or contract.
        unused: Inputs that no operator reads.
        unknown: Inputs that operators read, and outputs, without a role.
    """

    signature: Signature
    roles: dict[ir.Value, Role] = field(default_factory=dict)
    reasons: dict[ir.Value, str] = field(default_factory=dict)

    def add(self, value: ir.Value, role: Role, reason: str) -> None:
        """Add a role, unless the value has one already.

        Args:
            value: An input or output.
            role: Its role.
            reason: Where it comes from.
        """
        if value not in self.roles:
            self.roles[value], self.reasons[value] = role, reason

    @property
    def unused(self) -> list[str]:
        """Names of the inputs that no operator reads."""
        return [
            name
            for name, value in self.signature.inputs.items()
            if not value.uses() and value not in self.roles
        ]

    @property
    def unknown(self) -> list[str]:
        """Names of the inputs that an operator reads, and whose role is not known."""
        return [
            name for name, value in self.signature.inputs.items() if value.uses() and value not in self.roles
        ]

    @property
    def caches(self) -> dict[ir.Value, Role]:
        """The KV caches among the inputs."""
        return {value: role for value, role in self.roles.items() if role.is_cache}

    def names(self, kind: str) -> list[str]:
        """Return the names of the inputs and outputs of one kind.

        Args:
            kind: A kind of role.

        Returns:
            Their names, the inputs first, then by layer.
        """
        both = (*self.signature.inputs.items(), *self.signature.outputs.items())
        named = [(name, self.roles[value]) for name, value in both if value in self.roles]
        of_kind = [(name, role.layer or 0) for name, role in named if role.kind == kind]
        return list(dict.fromkeys(name for name, _ in sorted(of_kind, key=lambda pair: pair[1])))

    def missing(self) -> list[str]:
        """Return what a language model needs and this signature lacks, one line each.

        Returns:
            The lines; none for a signature that a runtime can use.
        """
        return list(_missing(self))


def find_roles(
    model: Model,
    given: Mapping[str, Role] | None = None,
    layouts: Mapping[str, str] | None = None,
    only: str | None = None,
) -> list[Findings]:
    """Find the role of each input and output of a model, and attach it to the value.

    Args:
        model: A model; its values get `meta["role"]`. Roles that they have already stay.
        given: Roles that the user gives, by name of an input or output.
        layouts: Layouts that the user gives, by name; "" is for all caches whose layout is unknown.
        only: The signature that `given` and `layouts` are for; None for all.

    Returns:
        The findings for each signature.
    """
    results = []
    for signature in model.signatures:
        findings = Findings(signature)
        is_meant = only in (None, signature.name)
        _take_given(findings, given or {} if is_meant else {})
        both = [*signature.inputs.values(), *signature.outputs.values()]
        for value in both:
            if (role := role_of(value)) is not None:
                findings.add(value, role, KNOWN)
        if model.format == "onnx":  # exporters name what they export; shapes may be symbolic
            _by_name(findings)
            _by_onnx_flow(findings)
        else:
            _by_data_flow(findings)
            _by_name(findings)
        _find_logits(findings)
        _complete_layouts(findings, layouts or {} if is_meant else {})
        results.append(findings)
    _share_windows(results)
    for findings in results:
        for value, role in findings.roles.items():
            value.meta["role"] = role
    return results


def _share_windows(results: Sequence[Findings]) -> None:
    """Give each layer the window that it has in another signature: a short one needs none for its mask."""
    windows = {
        role.slot: role.window
        for findings in results
        for role in findings.roles.values()
        if role.window is not None
    }
    for findings in results:
        for value, role in findings.roles.items():
            if role.slot in windows and role.window is None and findings.reasons[value] == BY_FLOW:
                findings.roles[value] = replace(role, window=windows[role.slot])


def _take_given(findings: Findings, given: Mapping[str, Role]) -> None:
    for values in (findings.signature.inputs, findings.signature.outputs):
        for name, value in values.items():
            role = given.get(name) or given.get(value.name or "")
            if role is not None:
                findings.add(value, role, GIVEN)


# ---- by data flow ----------------------------------------------------------------------------------


def _by_data_flow(findings: Findings) -> None:
    graph = findings.signature.graph
    blocks = attention_blocks(graph)
    rows = _Rows(findings)
    layer = 0
    for block in blocks:
        layer += rows.take(block, layer)
    rows.take_unread(layer)
    integers = integer_inputs(graph)
    inputs = [
        value for value in findings.signature.inputs.values() if value.uses() and value not in findings.roles
    ]
    tokens = next((value for value in integers.tokens if value in inputs), None)
    if tokens is not None:
        findings.add(tokens, Role("tokens"), BY_FLOW)
    count = _count(findings)
    capacity = _capacity(findings)
    reached = dict.fromkeys(point for block in blocks for point in block.masks)
    for value in graph_inputs(reached):
        if value in inputs and _is_mask(value, count, capacity, value in integers.positions):
            findings.add(value, Role("mask"), BY_FLOW)
    for value in integers.positions:
        if value in inputs and math.prod(shape_of(value)) in (1, count):
            findings.add(value, Role("position"), BY_FLOW)
    for value in integers.tables:  # a table of learned positions
        if value in inputs and math.prod(shape_of(value)) == count and integers.tables[value] >= capacity > 0:
            findings.add(value, Role("position"), BY_FLOW)


def _count(findings: Findings) -> int:
    """T: the number of tokens that the signature reads."""
    tokens = (value for value, role in findings.roles.items() if role.kind == "tokens")
    return max((math.prod(shape_of(value)) for value in tokens), default=1)


def _capacity(findings: Findings) -> int:
    """S: the number of rows of the caches; 0 without caches of a known layout."""
    return max(
        (shape_of(value)[role.layout.index("T")] for value, role in findings.caches.items() if role.layout),
        default=0,
    )


def _is_mask(value: ir.Value, count: int, capacity: int, is_position: bool) -> bool:
    shape = shape_of(value)
    last = shape[-1] if shape else 1
    if value.dtype in (ir.DataType.INT32, ir.DataType.INT64):
        return len(shape) >= 2 and last == (capacity or count) and (last != count or not is_position)
    return len(shape) >= 2 and last == (capacity or count)


def _find_logits(findings: Findings) -> None:
    """The logits: the floating-point output of most classes that is no key or value."""
    if any(role.kind == "logits" for role in findings.roles.values()):
        return
    others = [
        value
        for value in findings.signature.outputs.values()
        if value not in findings.roles
        and value.dtype is not None
        and value.dtype.is_floating_point()
        and 1 <= len(dims_of(value) or ()) <= 3
    ]
    widest = max(others, key=_classes, default=None)
    if (
        widest is not None
        and _classes(widest) > 1
        and any(role.kind == "tokens" for role in findings.roles.values())
    ):
        findings.add(widest, Role("logits"), BY_FLOW)


def _classes(value: ir.Value) -> int:
    """The size of the last axis; 0 if it is symbolic."""
    last = (dims_of(value) or (0,))[-1]
    return last if isinstance(last, int) else 0


class _Rows:
    """The caches and rows of a signature, assigned to layers in the order of its attention blocks."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.outputs = [
            (value, _layout_chain(value)) for value in dict.fromkeys(findings.signature.outputs.values())
        ]

    def take(self, block: AttentionBlock, layer: int) -> bool:
        """Assign the caches and rows of one block; False if all are those of an earlier layer."""
        before = len(self.findings.roles)
        for kind, own in (("key", block.key), ("value", block.value)):
            role = Role("key_cache" if kind == "key" else "value_cache", layer, window=block.window or None)
            caches = [value for value in own.inputs if value in self.findings.signature.inputs.values()]
            for cache in caches:
                layout: Any = layout_of(own.labels.get(Point(cache)), shape_of(cache))
                self.findings.add(cache, replace(role, layout=layout), BY_FLOW)
            for output, chain in self.outputs:
                self._take_output(output, chain, own, role)
        return len(self.findings.roles) > before

    def take_unread(self, layer: int) -> None:
        """Assign the caches of a last layer that is written and never read, as in a prefill without logits.

        The keys are the rows that depend on the position; without such rows, the first cache.
        """
        pairs = []
        for output, chain in self.outputs:
            step = producer(chain[-1])
            if output in self.findings.roles or step is None or step.node.op_type != "DYNAMIC_UPDATE_SLICE":
                continue
            cache = sources([step.operand(0)], lambda one: (0,) if one.node.op_type in _COPIES else ())
            inputs = [value for value in graph_inputs(cache) if value not in self.findings.roles]
            if len(inputs) == 1 and not is_constant(inputs[0]):
                pairs.append((inputs[0], output, _depends_on_position(step)))
        if len(pairs) != 2:
            return
        pairs.sort(key=lambda pair: not pair[2])  # the sort is stable
        for kind, (cache_input, output, _) in zip(("key_cache", "value_cache"), pairs, strict=True):
            role = Role(kind, layer)  # type: ignore[arg-type]
            self.findings.add(cache_input, role, BY_FLOW)
            self.findings.add(output, role.output_role, BY_FLOW)

    def _take_output(self, output: ir.Value, chain: list[Point], own: Trace, role: Role) -> None:
        if output in self.findings.roles:
            return
        for position, point in enumerate(chain):
            if point in own.labels:
                labels = own.labels[point]
                for later in chain[:position][::-1]:
                    node = later.value.producer()
                    labels = after(node, 0, labels) if labels is not None and node is not None else None
                layout: Any = layout_of(labels, shape_of(output))
                self.findings.add(output, replace(role.output_role, layout=layout), BY_FLOW)
                return


def _depends_on_position(write: Step) -> bool:
    """Whether the rows that are written into a cache are rotated, by sines or by a table."""
    reached = sources(
        [write.operand(1)], lambda step: () if step.node.op_type in MATMULS else all_operands(step)
    )
    nodes = [step.node for step in reached.values() if step is not None]
    return any(node.op_type in ("SIN", "COS", "ROPE", "GATHER") for node in nodes)


def _layout_chain(output: ir.Value) -> list[Point]:
    """An output, and what it is a copy of in another layout, each by operand 0 of the one before."""
    chain = []
    point = origin(Point(output))
    while True:
        chain.append(point)
        step = producer(point)
        if step is None or step.node.op_type not in _COPIES:
            return chain
        operand = step.operand(0)
        if operand is None:
            return chain
        point = operand


def _by_onnx_flow(findings: Findings) -> None:
    """Roles of what names leave open in ONNX."""
    graph = findings.signature.graph
    if not findings.caches:
        for value, role in cache_roles(graph).items():
            findings.add(value, role, BY_FLOW)
    caches = {pair.past for pair in cache_pairs(graph)}
    others = [v for v in findings.signature.inputs.values() if v not in caches and v.uses()]
    unnamed = [value for value in others if value not in findings.roles]
    has_tokens = any(role.kind == "tokens" for role in findings.roles.values())
    for value, role in input_roles(graph, unnamed, has_tokens).items():
        findings.add(value, role, BY_FLOW)


# ---- by name ---------------------------------------------------------------------------------------


def _by_name(findings: Findings) -> None:
    """Roles of the values that data flow leaves, where no other value has that role."""
    taken = {Role(role.kind, role.layer) for role in findings.roles.values()}
    for values, is_input in ((findings.signature.inputs, True), (findings.signature.outputs, False)):
        for name, value in values.items():
            if value in findings.roles or (is_input and not value.uses()):
                continue
            role = role_by_name(name, is_input=is_input) or role_by_name(value.name or "", is_input=is_input)
            if role is None and not is_input:  # AI Edge: a cache has one name as input and as output
                cache = role_by_name(name, is_input=True)
                role = cache.output_role if cache is not None and cache.is_cache else None
            if role is not None and role not in taken:
                findings.add(value, role, BY_NAME)


# ---- layouts ---------------------------------------------------------------------------------------


def _complete_layouts(findings: Findings, layouts: Mapping[str, str]) -> None:
    """Layouts of caches and rows without one: given, of the same cache, or by the axis that is written."""
    names = {
        value: {name, value.name or ""}
        for values in (findings.signature.inputs, findings.signature.outputs)
        for name, value in values.items()
    }
    for value, role in list(findings.roles.items()):
        given = next((layouts[name] for name in names.get(value, ()) if name in layouts), None)
        if given is not None and (role.is_cache or role.is_rows):
            findings.roles[value] = replace(role, layout=given)  # type: ignore[arg-type]
    for value, role in list(findings.roles.items()):
        if role.layout is None and role.is_cache:
            layout: Any = _written_layout(findings.signature.graph, value) or layouts.get("")
            findings.roles[value] = replace(role, layout=layout)
    by_slot = {role.slot: role.layout for role in findings.caches.values()}
    for value, role in list(findings.roles.items()):
        if role.layout is None and role.is_rows:
            layout = by_slot.get(role.slot)
            findings.roles[value] = replace(role, layout=layout or layouts.get(""))  # type: ignore[arg-type]


def _written_layout(graph: ir.Graph, cache: ir.Value) -> str | None:
    """The layout of a cache by the axis of new rows in a DYNAMIC_UPDATE_SLICE or CONCATENATION.

    Heads are before the head dimension, as in all layouts in use.
    """
    if len(dims_of(cache) or ()) != 4:
        return None
    if any(node.domain not in (DOMAIN, CUSTOM_DOMAIN) for node in graph):
        return written_layout(cache)
    for step in steps(graph):
        if step.node.op_type not in ("DYNAMIC_UPDATE_SLICE", "CONCATENATION") or len(step.node.inputs) < 2:
            continue
        operands = dict(step.operands())
        if 0 in operands and operands[0] == Point(cache):
            rows = shape_of(operands[1].value)
            whole = shape_of(step.node.outputs[0])
            differing = [axis for axis in range(4) if rows[axis] != whole[axis]]
            if len(differing) == 1 and differing[0] > 0:
                return {1: "BTNH", 2: "BNTH", 3: "BNHT"}[differing[0]]
    return None


# ---- what is missing -------------------------------------------------------------------------------


def _missing(findings: Findings) -> Iterator[str]:
    roles, names = findings.roles, _names(findings)
    kinds = {role.kind for role in roles.values()}
    has_caches = bool(findings.caches or kinds & {"key", "value"})
    if "tokens" not in kinds and not has_caches:
        yield f"no input is token ids, and none is a KV cache: name them with {_COMMAND} --role"
        return
    if "tokens" not in kinds:
        yield f"no input indexes an embedding: name the token ids with {_COMMAND} --role NAME=tokens"
    if not has_caches:
        yield f"no input or output is a KV cache: name each with {_COMMAND} --role NAME=key_cache:LAYER"
    slots = {role.slot for role in roles.values() if role.is_cache or role.is_rows}
    for kind, layer in sorted(slots):
        other = "value" if kind == "key" else "key"
        if (other, layer) not in slots:
            yield (
                f"layer {layer} has a {kind} cache and no {other} cache: "
                f"name it with {_COMMAND} --role NAME={other}_cache:{layer}"
            )
    for value, role in roles.items():
        if (role.is_cache or role.is_rows) and role.layout is None:
            yield (
                f"the layout of {names[value]!r} {list(dims_of(value) or ())} is not clear: "
                f"give it with {_COMMAND} --layout, such as BNTH for [1,K,S,H]"
            )
    if findings.caches and "position" not in kinds and not _shows_place(findings):
        yield f"no input is the position of the first token: name it with {_COMMAND} --role NAME=position"
    returned = {role.slot for role in roles.values() if role.is_rows}
    for value, role in findings.caches.items():
        if role.slot not in returned and not _is_updated_in_place(value):
            yield (
                f"no output returns the cache {names[value]!r}: "
                f"name it with {_COMMAND} --role NAME={role.output_role.kind}:{role.layer}"
            )
    if len(masks := findings.names("mask")) > 1:
        yield (
            f"{listed(masks)} are masks, and nothing shows which has a window: "
            f"export the model with one mask, or with masks inside"
        )
    if findings.unknown:
        yield f"the role of {listed(findings.unknown)} is not clear: name it with {_COMMAND} --role"


def _shows_place(findings: Findings) -> bool:
    """Whether something else than a position says where a run is in the text: a length, or growing caches."""
    kinds = {role.kind for role in findings.roles.values()}
    grows = any(
        role.layout is not None and isinstance((dims_of(value) or (0,) * 4)[role.layout.index("T")], str)
        for value, role in findings.caches.items()
    )
    return bool(kinds & {"last_position", "length"}) or grows


def _names(findings: Findings) -> dict[ir.Value, str]:
    both = (*findings.signature.inputs.items(), *findings.signature.outputs.items())
    return {value: name for name, value in both}


def _is_updated_in_place(cache: ir.Value) -> bool:
    return any(takes_as_cache(use.node, use.idx) for use in cache.uses())
