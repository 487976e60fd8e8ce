"""Circle's decode graph -> ONNX: one graph for prefill and decode, of any number of tokens.

    inputs    tokens [1, T], position int64 [1] of the first of them; past_key_0, past_value_0, ...
    outputs   logits [1, 1, V] of the last token, or [1, T, V]; present_key_0, present_value_0, ...

Caches are [1, K, S, H]. A present one is the past one with T rows written, and may be bound to the
same buffer.
"""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir

from o2o import __version__, contract, history
from o2o.contract import Role, role_of
from o2o.errors import ModelError
from o2o.formats.tensors import is_constant, is_quantized
from o2o.lower.onnx.attention import Caches, lower_attention, lower_causal_attention, lower_rope
from o2o.lower.onnx.builder import FLOAT, Emitter, dims
from o2o.lower.onnx.fuse_inputs import fuse_inputs
from o2o.lower.onnx.operators import activated, cast, constant_vector, lower_operator
from o2o.lower.onnx.ort_form import Contrib
from o2o.lower.onnx.per_token import Tokens, inner
from o2o.lower.onnx.standard_form import Standard
from o2o.lower.onnx.weights import matrix_of
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, Signature, attribute, shape_of
from o2o.operators import causal_attention
from o2o.operators.facts import lookup_operands
from o2o.quantization import metadata
from o2o.rewriting.dead_code_elimination import live_nodes
from o2o.rewriting.matchers import producer_of
from o2o.signatures import decode_of

FORMS: dict[str, type[Standard]] = {form.name: form for form in (Standard, Contrib)}


def lower_to_onnx(model: Model, form: str = "standard", logits: str = "last") -> ir.Model:
    """The ONNX model of the decode graph of `model`, a Circle model, which is changed.

    form: `standard`, or `ort` with ONNX Runtime's own operators. logits: of the `last` token, or `all`.
    Weights stay where they are until they are written (`write`). Raises ModelError.
    """
    if model.format != "circle":
        raise ModelError("this is TFLite: ONNX is made of Circle, which lower.litert.py has been given")
    decode = decode_of(model)
    _check_roles(decode)
    return _Lowering(model, decode, FORMS[form], logits == "last").run()


def _check_roles(decode: Signature) -> None:
    """Raise ModelError unless decode has every role that the ONNX graph needs."""
    inputs = {role.kind: value for value in decode.graph.inputs if (role := role_of(value)) is not None}
    outputs = {role.kind for value in decode.graph.outputs if (role := role_of(value)) is not None}
    needed = ("tokens", "position", "key_cache", "value_cache")
    missing = [kind for kind in needed if kind not in inputs]
    missing += ["logits"] if "logits" not in outputs else []
    if missing:
        raise ModelError(f"{decode.name}: no tensor has the role {missing[0]} in the o2o.contract")
    if (shape := shape_of(inputs["position"])) not in ((), (1,), (1, 1)):
        raise ModelError(f"{decode.name}: its position {list(shape)} is not that of one token")


class _Lowering:
    def __init__(self, model: Model, decode: Signature, form: type[Standard], last: bool) -> None:
        self.model, self.graph, self.last = model, decode.graph, last
        fuse_inputs(model, self.graph)
        roles = {value: role_of(value) for value in self.graph.inputs}
        ends: dict[str, ir.Value] = {role.kind: value for value, role in roles.items() if role is not None}
        strange = [v.name for v, role in roles.items() if role is None and v.uses()]
        if strange:
            label = model.label(self.graph)
            raise ModelError(f"{label} takes {strange[0]}, of which the contract tells no role that ONNX has")
        cache = ends["key_cache"]
        layout = getattr(role_of(cache), "layout", None)
        if layout is None:
            raise ModelError(f"the contract of {cache.name} tells no layout")
        self.op = Emitter()
        capacity = shape_of(cache)[layout.index("T")]
        quantized = any(is_quantized(value) for value in self.graph.initializers.values())
        self.tokens = Tokens(model, self.graph, self.op, ends, capacity, form.front(quantized))
        self.given_out = self.op.value("logits", FLOAT, [1])
        self.form = form(self.tokens)
        self.caches = Caches(self.tokens)
        self.logits = next(
            v for v in self.graph.outputs if (role := role_of(v)) is not None and role.kind == "logits"
        )
        self.head = _head(self.logits)
        self._check_outputs()

    def _check_outputs(self) -> None:
        """Raises ModelError for what the graph gives out besides logits and caches: nothing may get lost."""
        for value in self.graph.outputs:
            role = role_of(value)
            told = role is not None and role.kind in ("key", "value")
            if value is not self.logits and not (told and producer_of(value, "DYNAMIC_UPDATE_SLICE")):
                label = self.model.label(self.graph)
                raise ModelError(
                    f"{label} gives out {value.name}, neither logits nor a cache: remove.io.py removes it"
                )

    def run(self) -> ir.Model:
        live = live_nodes(self.graph)
        for node in self.graph:
            if node.outputs[0] in self.tokens.values:
                continue  # done with another
            if node in live and not all(map(self.tokens.is_without_tokens, node.outputs)):
                self.node(node)
        unwritten = self.caches.left()
        if unwritten:
            raise ModelError(f"{self.model.label(self.graph)} writes nothing into its cache {unwritten[0]}")
        return self.finished()

    def node(self, node: ir.Node) -> None:
        match node.domain, node.op_type:
            case _, "ATTENTION" if node.domain == DOMAIN:
                lower_attention(self.tokens, self.form, self.caches, node)
            case _, causal_attention.NAME if node.domain == CUSTOM_DOMAIN:
                lower_causal_attention(self.tokens, self.form, self.caches, node)
            case _, _ if node.domain != DOMAIN:
                raise self.tokens.refuse(node, "a custom operator, of which ONNX knows nothing")
            case _, "DYNAMIC_UPDATE_SLICE":
                self.caches.update(node)
            case _, "TRANSPOSE" if node.inputs[0] in self.caches.written:
                pass  # a cache by head, which is what attention looks at
            case _, "RMS_NORM":
                self.norm(node)
            case _, "ADD" if (norm := _norm_behind(node)) is not None:
                self.add_norm(node, norm)
            case _, "MUL" if (x := _silu(node)) is not None:
                y = self.form.silu(self.tokens.get(x, node), node.outputs[0].name or "")
                self.tokens.put(node.outputs[0], y)
            case _, "ROPE":
                lower_rope(self.tokens, self.form, node)
            case _, "FULLY_CONNECTED":
                self.fully_connected(node)
            case _, "GATHER" | "EMBEDDING_LOOKUP":
                self.look_up(node)
            case _:
                lower_operator(self.tokens, node)

    def norm(self, node: ir.Node) -> None:
        x, weight = node.inputs
        output = node.outputs[0]
        scale = constant_vector(self.tokens, weight, node)
        found = self.tokens.operand(x, node, max(1, len(inner(output))))
        epsilon = float(attribute(node, "epsilon", 0.0))
        self.tokens.put(output, self.form.norm(found, scale, epsilon, output.name or ""))

    def add_norm(self, node: ir.Node, norm: ir.Node) -> None:
        """ADD, and RMS_NORM of what it gives."""
        total, output = node.outputs[0], norm.outputs[0]
        rank = len(inner(total))
        x, y = (self.tokens.operand(value, node, rank) for value in node.inputs)
        scale = constant_vector(self.tokens, norm.inputs[1], norm)
        epsilon = float(attribute(norm, "epsilon", 0.0))
        found = self.form.add_norm(x, y, scale, epsilon, (total.name or "", output.name or ""))
        for value, made in zip((total, output), found, strict=True):
            self.tokens.put(value, made)

    def fully_connected(self, node: ir.Node) -> None:
        x, w, bias = [*node.inputs, None][:3]
        output = node.outputs[0]
        assert x is not None
        what = self.tokens.called(node)
        if attribute(node, "weightsFormat", 0):
            raise self.tokens.refuse(node, "its weights have a format of their own")
        matrix = matrix_of(w, what)
        count = math.prod(shape_of(x)) // matrix.columns  # of rows that a token has
        found = self.tokens.viewed(x, node, [matrix.columns] if count == 1 else [count, matrix.columns])
        if node is self.head and self.last:
            found = self.last_row(found)
        added = None if bias is None else constant_vector(self.tokens, bias, node)
        y = activated(self.tokens, node, self.form.linear(found, matrix, added, output.name or ""))
        self.tokens.put(output, y)

    def last_row(self, x: ir.Value) -> ir.Value:
        """What the last token has of `x` [*front, ...]."""
        axis = len(self.tokens.front) - 1
        ends = [self.op.constant([end], "end") for end in (-1, np.iinfo(np.int64).max, axis)]
        shape = [1] * (axis + 1) + dims(x)[axis + 1 :]
        return self.op.node("Slice", [x, *ends], shape, name="last")

    def look_up(self, node: ir.Node) -> None:
        lookup = lookup_operands(node)
        assert lookup is not None
        table, ids = lookup
        output = node.outputs[0]
        if attribute(node, "axis", 0) or attribute(node, "batchDims", 0):
            raise self.tokens.refuse(node, "it takes other than rows")
        matrix = matrix_of(table, self.tokens.called(node))
        found = self.form.look_up(self.tokens.get(ids, node), matrix, output.name or "")
        self.tokens.put(output, cast(self.tokens, found, output))

    # the ends ----------------------------------------------------------------------------------------

    def finished(self) -> ir.Model:
        found = self.tokens.get(self.logits, self.logits.producer() or next(iter(self.graph)))
        V = shape_of(self.logits)[-1]
        if self.last and "T" in dims(found):  # its head was not found, or others need all its rows
            found = self.last_row(found)
        shape = [1, self.tokens.front_of(found)[-1], V]
        if dims(found) == shape and found.producer() is not None and found.dtype == FLOAT:
            found.name, logits = "logits", found
        else:
            logits = self.given_out
            logits.shape = ir.Shape(shape)
            self.op.add("Reshape", [found, self.op.constant([1, -1, V], "logits_shape")], [logits])
        past, present = self.caches.ends()
        inputs = [self.tokens.tokens, self.tokens.position, *past]
        outputs = [logits, *present]
        for value, kind in ((inputs[0], "tokens"), (inputs[1], "position"), (logits, "logits")):
            value.meta["role"] = Role(kind)  # type: ignore[arg-type]
        for cache, ends in self.caches.by_input.items():
            role = role_of(cache)
            assert role is not None
            ends.past.meta["role"] = Role(role.kind, role.layer, "BNTH")
            kind = role.kind.removesuffix("_cache")
            ends.present.meta["role"] = Role(kind, role.layer, "BNTH")  # type: ignore[arg-type]
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=_needed(self.op.nodes, outputs),
            initializers=[],
            opset_imports=self.form.opsets,
            name="decode",
        )
        used = {value for node in graph for value in node.inputs}
        for value in self.op.constants:
            if value in used:
                graph.register_initializer(value)
        version = onnx.helper.find_min_ir_version_for(
            [onnx.helper.make_opsetid("", self.form.opsets[""])], ignore_unknown=True
        )
        lowered = ir.Model(graph, ir_version=version, producer_name="o2o", producer_version=__version__)
        tell(lowered, self.model)
        return lowered


def tell(lowered: ir.Model, model: Model) -> None:
    """Write contract, history and the like into the metadata of `lowered`, which was made of `model`."""
    graph = lowered.graph
    ends = ({value.name or "": value for value in some} for some in (graph.inputs, graph.outputs))
    signed = Model("circle", [graph], [Signature("decode", graph, *ends)])
    told = contract.contract_of(signed)
    lowered.metadata_props[contract.METADATA_NAME] = json.dumps(told, separators=(",", ":"))
    if quantization := dict(model.metadata).get(metadata.METADATA_NAME):
        lowered.metadata_props[metadata.METADATA_NAME] = quantization.decode()
    if (done := history.dumps(model.history)) is not None:
        lowered.metadata_props[history.METADATA_NAME] = done.decode()


def _head(logits: ir.Value) -> ir.Node | None:
    """The FULLY_CONNECTED that makes them, if what comes between goes by element, with constants alone."""
    value = logits
    while (node := value.producer()) is not None and node.domain == DOMAIN:
        if len(value.uses()) > (0 if value is logits else 1):
            return None
        if node.op_type == "FULLY_CONNECTED":
            return node
        operands = [v for v in node.inputs if v is not None and not is_constant(v)]
        if len(operands) != 1 or node.op_type not in _AFTER_HEAD:
            return None
        (value,) = operands
    return None


def _norm_behind(node: ir.Node) -> ir.Node | None:
    """The RMS_NORM of what `node`, an ADD of two vectors of a token, gives, if there is one."""
    output = node.outputs[0]
    same = all(v is not None and not is_constant(v) and inner(v) == inner(output) for v in node.inputs)
    if not same or len(inner(output)) != 1 or attribute(node, "fusedActivationFunction", 0):
        return None
    users = [use.node for use in output.uses() if use.idx == 0]
    return next((user for user in users if (user.domain, user.op_type) == (DOMAIN, "RMS_NORM")), None)


def _silu(node: ir.Node) -> ir.Value | None:
    """x, when `node`, a MUL, gives x times its logistic function."""
    if attribute(node, "fusedActivationFunction", 0):
        return None
    for x, gate in (node.inputs, reversed(node.inputs)):
        logistic = producer_of(gate, "LOGISTIC")
        if logistic is not None and logistic.inputs[0] is x:
            return x
    return None


_AFTER_HEAD = {"ADD", "SUB", "MUL", "DIV", "TANH", "CAST", "RESHAPE"}


def _needed(nodes: list[ir.Node], outputs: list[ir.Value]) -> list[ir.Node]:
    """Those of `nodes` that `outputs` need, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(value in wanted for value in node.outputs):
            kept.append(node)
            wanted |= {value for value in node.inputs if value is not None}
    return kept[::-1]
