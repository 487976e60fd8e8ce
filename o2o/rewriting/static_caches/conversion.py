"""The rewriting of a growing graph into a static one: see the package."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir

from o2o.contract import Role
from o2o.errors import ModelError, UsageError
from o2o.formats.onnx_writer import decoded_header
from o2o.formats.tensors import is_constant
from o2o.model import Model, Signature, attribute, captured_values, dims_of
from o2o.operators.onnx_shape_inference import forget_wrong_shapes, infer_shapes
from o2o.operators.traits import is_cast
from o2o.rewriting.builder import add_constant, fresh_name
from o2o.rewriting.dead_code_elimination import remove_dead_constants, remove_dead_nodes
from o2o.rewriting.fix_dimensions import fix_values
from o2o.rewriting.onnx_builder import OnnxBuilder
from o2o.rewriting.onnx_folding import fold_constants
from o2o.rewriting.onnx_opsets import raise_opsets
from o2o.rewriting.static_caches.instances import ROUNDS, Instance, instance
from o2o.rewriting.static_caches.interface import POSITIONS, SMALLEST_PAST, Interface, Sizes, fixed_input
from o2o.rewriting.static_caches.masks import combined, compute_masks, hide_unmasked, mask_with_past
from o2o.rewriting.static_caches.moving_rows import resolve_indices, static_slice
from o2o.rewriting.static_caches.past_numbers import Kind, PastNumbers, is_size_operand
from o2o.rewriting.static_caches.position_numbers import PositionNumbers

OPSET = 24
"""The first opset with TensorScatter."""
POSITION = "position"
"""The name of the new input, if it is free."""
_ALONG_ROWS = (
    *("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ArgMax", "ArgMin", "TopK"),
    *("Split", "LayerNormalization"),
)
"""Operators whose result shows rows behind the position, if they work along an axis that grows."""


def make_static(model: Model, roles: Mapping[ir.Value, Role], sizes: Sizes) -> Model:
    """Give a decoder whose caches grow static caches, and the position of its first token as an input.

    Masks and positions that are inputs are computed from the new input, and are inputs no more. Token t of a
    run has the position `position + t`, and sees the keys up to that position.

    Args:
        model: An ONNX model whose caches grow. It is not changed.
        roles: The roles of inputs and outputs of its graph.
        sizes: The sizes of the result.

    Returns:
        A model with one sequence, static shapes, and roles in its contract.

    Raises:
        ModelError: A part of the graph has no static form; the message names it.
        UsageError: The capacity has no room for the tokens and some past.
    """
    if sizes.capacity < sizes.tokens + SMALLEST_PAST:
        raise UsageError(
            f"--cache-length {sizes.capacity} is too short for runs of {sizes.tokens} tokens: "
            f"give at least {sizes.tokens + SMALLEST_PAST}"
        )
    names = {value.name: role for value, role in roles.items() if value.name}
    copy = decoded_header(model, _without_functions)
    copy.add_default_signature("main")
    _remove_copies(copy.graphs[0])
    caches = [value for value in copy.graphs[0].inputs if value.name in names and names[value.name].is_cache]
    if any(node.domain == "" for cache in caches for node, _ in cache.uses()):
        raise_opsets([copy], {"": OPSET})
    _Conversion(copy, names, sizes).run()
    return copy


def _without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


def _remove_copies(graph: ir.Graph) -> None:
    """Let users read the original of a copy: Identity, a Cast to its dtype, or a Concat of one operand."""
    for node in list(graph):
        operand = node.inputs[0] if len(node.inputs) == 1 else None
        is_copy = node.domain == "" and node.op_type in ("Identity", "Concat")
        if node.domain == "" and node.op_type == "Cast" and operand is not None:
            is_copy = operand.dtype is not None and operand.dtype == attribute(node, "to")
        if is_copy and operand is not None and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(operand)
            graph.remove(node, safe=True)


_ANGLES = {
    ("", "RotaryEmbedding"): 1,
    ("com.microsoft", "RotaryEmbedding"): 2,
    ("com.microsoft", "GroupQueryAttention"): 7,
}
"""The operand of rotations that has a row of angles for each position."""


def _short(table: ir.Value | None, rows: int) -> UsageError:
    name = table.name if table is not None else ""
    return UsageError(f"{name} has {rows} rows, one for each position: give --cache-length {rows} or less")


class _Conversion:
    def __init__(self, model: Model, names: Mapping[str, Role], sizes: Sizes) -> None:
        self.model, self.graph, self.sizes, self.names = model, model.graphs[0], sizes, names
        self.interface = Interface(self.graph, names)
        self.dimensions = self.interface.dimensions(sizes)

    def run(self) -> None:
        """Rewrite the graph."""
        self._fix_inputs()
        past = self.sizes.capacity - self.sizes.tokens
        one, other = self.dimensions(past), self.dimensions(1)
        fix_values(self.model, {name: size for name, size in one.items() if size == other[name]})
        forget_wrong_shapes(self.model)
        self._fold()  # branches that do not depend on the past become nodes, and their results outputs
        self.interface = Interface(self.graph, self.names)
        self._fix_head_sizes()
        self.numbers = PastNumbers(self.graph, [self._instance(p) for p in (past, past - 1, 1)])
        self.positions = self._positions()
        for node in list(self.graph):
            self._rewrite(node)
        for value in (value for kind in POSITIONS for value in self.interface.inputs(kind)):
            value.replace_all_uses_with(self._static(value))  # in branches
        compute_masks(self.interface, self.positions)
        self._set_shapes()
        hide_unmasked(self.graph, self.numbers, self.positions)
        self._remove_inputs()
        forget_wrong_shapes(self.model)  # those of a mask without a past
        self._fold()
        self._refuse_short_tables()

    # ---- before ------------------------------------------------------------------------------------

    def _fold(self) -> None:
        for _ in range(ROUNDS):
            infer_shapes(self.model)
            if not fold_constants(self.model):
                break

    def _instance(self, past: int) -> Instance:
        inputs = self.interface.positions(past, self.sizes)
        return instance(self.model, past, self.dimensions(past), inputs)

    def _fix_inputs(self) -> None:
        """Inputs that are neither tokens, positions, masks nor caches have one value, or are refused."""
        for value in list(self.graph.inputs):
            role = self.interface.roles.get(value)
            kinds = ("tokens", "mask", *POSITIONS)
            if (role is not None and (role.is_cache or role.kind in kinds)) or not value.uses():
                continue
            array = fixed_input(value, role, self.sizes)
            if array is None:
                raise ModelError(
                    f"the role of the input {value.name} {list(dims_of(value) or ())} is not clear: "
                    "name it with sign.contract.py --role, or remove it"
                )
            value.replace_all_uses_with(add_constant(self.graph, array, f"{value.name}_fixed"))

    def _fix_head_sizes(self) -> None:
        """H of caches where it is a symbol: by the keys of the operator that reads the cache."""
        sizes: dict[str, int] = {}
        for cache in self.interface.caches:
            last = (dims_of(cache) or (0,))[-1]
            for node, _ in cache.uses() if isinstance(last, str) else ():
                if node.op_type == "Concat":
                    rows = [(dims_of(x) or ("",))[-1] for x in node.inputs if x is not None]
                    sizes |= {str(last): size for size in rows if isinstance(size, int)}
                    continue
                if len(node.inputs) < 2:
                    continue
                query, keys = node.inputs[:2]
                heads = attribute(node, "kv_num_heads", attribute(node, "num_heads", 0))
                if keys is None:  # packed: queries, keys and values are one operand
                    keys, heads = query, 2 * heads + attribute(node, "num_heads", 0)
                width = (dims_of(keys) or (0,))[-1] if keys is not None else 0
                if isinstance(width, int) and heads and width % heads == 0:
                    sizes[str(last)] = width // heads
        fix_values(self.model, sizes)

    def _positions(self) -> PositionNumbers:
        """Add the position to the inputs."""
        names = [value.name for value in self.graph.inputs]
        name = POSITION if POSITION not in names else fresh_name(self.graph, POSITION)
        position = ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        position.meta["role"] = Role("position")
        tokens = self.interface.inputs("tokens")
        self.graph.inputs.insert(self.graph.inputs.index(tokens[0]) + 1 if tokens else 0, position)
        op = OnnxBuilder(self.graph, before=next(iter(self.graph)), prefix="position_")
        return PositionNumbers(position, op, self.sizes)

    # ---- nodes -------------------------------------------------------------------------------------

    def _rewrite(self, node: ir.Node) -> None:
        """Replace a node, or its operands, if it is computed in the static graph, too."""
        where = self.model.locate(self.graph, node)
        if all(self.numbers.kind(value) is not Kind.VARYING for value in node.outputs):
            if outputs := [value.name for value in node.outputs if value.is_graph_output()]:
                raise ModelError(f"the output {outputs[0]} is a number that follows from sizes alone")
            return
        for captured in captured_values(node):
            follows = self.numbers.kind(captured) in (Kind.LINEAR, Kind.PREFIX)
            if (follows and not captured.is_graph_input()) or self.numbers.growing_axes(captured):
                raise ModelError(f"{where}: a graph in it depends on the length of caches")
        if self._write_cache(node, where):
            return
        op_type = node.op_type if node.domain == "" else ""
        if op_type == "Slice":
            self._replace_slice(node, where)
            return
        if op_type == "Expand" and self._replace_mask_without_past(node, where):
            return
        if op_type in ("Shape", "Size"):
            raise ModelError(f"{where}: this size is not known")
        if op_type:
            self._refuse_rows(node, where)
        if op_type == "Gather":
            resolve_indices(node, self.numbers, self.positions, where)
        for index, operand in enumerate(node.inputs):
            if operand is None:
                continue
            is_size = is_size_operand(node, index) or op_type == "Range"
            if self.numbers.kind(operand) is not Kind.VARYING:
                node.replace_input_with(index, self._static(operand, is_size))
            elif is_size and operand in self.numbers.kinds:
                raise ModelError(f"{where}: its shape depends on more than the past")

    def _static(self, value: ir.Value, is_size: bool = False) -> ir.Value:
        """What takes the place of an operand. If it follows from the past, it follows from the position."""
        kind = self.numbers.kind(value)
        if kind is Kind.VARYING or is_constant(value):
            return value
        if kind is Kind.LINEAR and not is_size:
            line = self.numbers.linear(value)
            assert value.dtype is not None
            return self.positions.line(line.offset, line.slope, value.dtype)
        return add_constant(self.graph, self.numbers.numbers(value), f"{value.name}_static")

    def _refuse_rows(self, node: ir.Node, where: str) -> None:
        """Refuse operators whose result would show rows behind the position."""
        output, operand = node.outputs[0], node.inputs[0] if node.inputs else None
        growing = self.numbers.growing_axes(output)
        if node.op_type in ("Concat", "Pad"):
            axes = set(growing)
            if node.op_type == "Concat" and growing:
                axes &= {attribute(node, "axis") % len(self.numbers.instances[0].shapes[output.name or ""])}
            if axes:
                raise ModelError(f"{where} appends to something that grows, and this is no KV cache")
        loses_rows = node.op_type in _ALONG_ROWS and (not growing or node.op_type == "Split")
        if loses_rows and operand is not None and self.numbers.growing_axes(operand):
            raise ModelError(f"{where} works along the tokens of the past, with rows behind the position")

    def _replace_slice(self, node: ir.Node, where: str) -> None:
        data = node.inputs[0]
        assert data is not None
        op = self._before(node)
        rows = static_slice(node, self._static(data), self.numbers, self.positions, op, where)
        if rows is not None:
            self._replace(node.outputs[0], rows)

    def _replace_mask_without_past(self, node: ir.Node, where: str) -> bool:
        """Replace a causal mask [T,T] expanded to [T,P+T]. It works only without a past or for one token."""
        mask, size = node.inputs
        if mask is None or size is None or Kind.VARYING in map(self.numbers.kind, (mask, size)):
            return False
        shape, dims = self.numbers.numbers(mask).shape, self.numbers.numbers(size).reshape(-1).tolist()
        if all(a in (1, b) or b == 1 for a, b in zip(reversed(shape), reversed(dims), strict=False)):
            return False
        new = mask_with_past(self._before(node), self.numbers.numbers(mask), self.positions, dims)
        if new is None:
            raise ModelError(
                f"{where} expands {list(shape)} to {dims}: the model reads several tokens only without a "
                "past; give --tokens 1"
            )
        self._replace(node.outputs[0], new)
        return True

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let a value take the place of a result. Its kind becomes that of the old one."""
        name = old.name or ""
        if old.is_graph_output():
            if new.producer() is None or new.is_graph_output():
                producer = old.producer()
                assert producer is not None
                new = self._before(producer).node("Identity", [new], list(dims_of(new) or ()), name="output")
            old.name, new.name = fresh_name(self.graph, f"{old.name}_before"), old.name
            self.interface.replace_output(old, new)
        self.numbers.kinds[new] = self.numbers.kind(old)
        for one in self.numbers.instances:
            shape = one.shapes.get(name)
            if shape is not None and new.name:
                one.shapes[new.name] = shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def _before(self, node: ir.Node) -> OnnxBuilder:
        return OnnxBuilder(self.graph, before=node, prefix=f"{node.outputs[0].name}_")

    # ---- caches ------------------------------------------------------------------------------------

    def _cache_of(self, value: ir.Value | None) -> ir.Value | None:
        """The cache that a value is, or that it is converted from."""
        while value is not None and value not in self.interface.caches:
            node = value.producer()
            value = node.inputs[0] if node is not None and is_cast(node) else None
        return value

    def _cache_shape(self, cache: ir.Value) -> list[int]:
        dims = list(self.numbers.instances[0].shapes.get(cache.name or "", ()))
        dims[self.interface.token_axis(cache)] = self.sizes.capacity
        return dims

    def _write_cache(self, node: ir.Node, where: str) -> bool:
        """Write rows at the position instead of appending them."""
        if (node.domain, node.op_type) == ("", "Attention"):
            return self._write_caches_of_attention(node, where)
        if (node.domain, node.op_type) != ("", "Concat") or len(node.inputs) != 2:
            return False
        past, rows = node.inputs
        cache = self._cache_of(past)
        if past is None or rows is None or cache is None:
            return False
        axis = attribute(node, "axis") % 4
        if axis != self.interface.token_axis(cache):
            return False
        self._replace(node.outputs[0], self._written(node, cache, past, rows, axis))
        return True

    def _written(self, node: ir.Node, cache: ir.Value, past: ir.Value, rows: ir.Value, axis: int) -> ir.Value:
        op, shape = self._before(node), self._cache_shape(cache)
        operands = [past, rows, self.positions.position]
        return op.node("TensorScatter", operands, shape, name="written", axis=axis)

    def _write_caches_of_attention(self, node: ir.Node, where: str) -> bool:
        """Attention that appends to caches itself reads written caches, and gets a mask."""
        operands = [*node.inputs, *[None] * (7 - len(node.inputs))]
        _, *rows, given, key_cache, value_cache, lengths = operands
        caches = [key_cache, value_cache]
        if key_cache is None and value_cache is None:
            return False
        if lengths is not None or any(cache not in self.interface.caches for cache in caches):
            raise ModelError(f"{where}: its caches are no inputs of the graph")
        if any(len(dims_of(value) or ()) != 4 for value in rows if value is not None):
            raise ModelError(f"{where}: its operands have three axes; only four have a static form")
        for index, (cache, new) in enumerate(zip(caches, rows, strict=True), 1):
            assert cache is not None
            assert new is not None
            written = self._written(node, cache, cache, new, 2)
            node.replace_input_with(index, written)
            node.replace_input_with(index + 3, None)
            if index < len(node.outputs):
                self._replace(node.outputs[index], written)
        op = self._before(node)
        mask = self.positions.visible(op, is_causal=bool(attribute(node, "is_causal", 0)))
        node.attributes["is_causal"] = ir.AttrInt64("is_causal", 0)
        given = None if given is None else self._static(given)
        shape = [] if given is None else list(self.numbers.instances[0].shapes.get(given.name or "", ()))
        node.replace_input_with(3, combined(op, mask, given, shape))
        return True

    # ---- after -------------------------------------------------------------------------------------

    def _set_shapes(self) -> None:
        """All shapes are those of the instance that fills the capacity."""
        known = self.numbers.instances[0].shapes
        for value in (*self.graph.inputs, *(v for node in self.graph for v in node.outputs)):
            if value.name in known and (value.shape is None or not value.shape.is_static()):
                value.shape = ir.Shape(known[value.name])
        for cache, role in self.interface.caches.items():
            cache.shape = ir.Shape(self._cache_shape(cache))
            if (output := self.interface.outputs.get(role.slot)) is None:
                continue
            rows = known.get(output.name or "", ())[self.interface.token_axis(cache) :][:1]
            if rows and rows[0] != self.sizes.capacity:
                raise ModelError(f"the output {output.name} returns {rows[0]} rows, not all of its cache")
            output.shape = ir.Shape(self._cache_shape(cache))

    def _refuse_short_tables(self) -> None:
        """Refuse a capacity beyond a table of positions: compute the last indices of each lookup."""
        last = np.full([1], self.sizes.capacity - self.sizes.tokens, np.int64)
        name = self.positions.position.name or ""
        at_end = instance(self.model, int(last[0]), {}, {name: last})
        for node in self.graph:
            if (number := _ANGLES.get((node.domain, node.op_type))) is not None:
                angles = [*node.inputs, *[None] * number][number]
                rows = (dims_of(angles) or (0,))[0] if angles is not None and is_constant(angles) else 0
                if isinstance(rows, int) and 0 < rows < self.sizes.capacity:
                    raise _short(angles, rows)
            table, indices = [*node.inputs, None, None][:2]
            rows = (dims_of(table) or (0,))[0] if table is not None else 0
            numbers = at_end.numbers.get(indices.name or "") if indices is not None else None
            if (node.domain, node.op_type) != ("", "Gather") or numbers is None or not isinstance(rows, int):
                continue
            if attribute(node, "axis", 0) == 0 and numbers.size and int(numbers.max()) >= rows:
                raise _short(table, rows)

    def _remove_inputs(self) -> None:
        """Inputs that nothing reads go, but for tokens and caches. The others get their roles."""
        remove_dead_nodes(self.graph)
        remove_dead_constants(self.graph)
        caches, tokens = self.interface.caches, self.interface.inputs("tokens")
        needed = (*caches, *tokens, self.positions.position)
        self.graph.inputs[:] = [value for value in self.graph.inputs if value.uses() or value in needed]
        for value, role in self.interface.roles.items():
            value.meta["role"] = role
        inputs = {value.name or "": value for value in self.graph.inputs}
        outputs = {value.name or "": value for value in self.graph.outputs}
        name = self.model.signatures[0].name
        self.model.signatures[:] = [Signature(name, self.graph, inputs, outputs)]
