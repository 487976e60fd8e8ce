"""Circle's decode graph to ONNX: one graph for prefill and decode, for any number of tokens T.

    inputs    tokens [1, T]; position of the first token, int64 [1]; past_key_0, past_value_0, ...;
              window_row int64 [1], if there are window caches
    outputs   logits [1, 1, V] of the last token, or [1, T, V]; present_key_0, present_value_0, ...

With `num_logits`, int64 [1], as the last input, the logits are those of this number of last tokens.

Caches are [1, K, S, H]. A present cache is the past one with T rows written. Both may be bound to one buffer.
"""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir

from o2o import __version__, contract, history
from o2o.contract import NUM_LOGITS, Role, role_of
from o2o.errors import ModelError
from o2o.formats.tensors import is_constant, is_quantized
from o2o.lower.onnx.attention import Caches, lower_core_attention, lower_rope
from o2o.lower.onnx.builder import FLOAT, INT64, Dim, OnnxBuilder, dims
from o2o.lower.onnx.cached_rows import CachedRows
from o2o.lower.onnx.fused_activation import with_activation
from o2o.lower.onnx.norms import NormNodes, Norms
from o2o.lower.onnx.operators import cast, constant_vector, lower_operator
from o2o.lower.onnx.ort_form import OrtForm
from o2o.lower.onnx.per_token import Rule, TokenValues, token_shape
from o2o.lower.onnx.standard_form import MAX_BLOCK, StandardForm
from o2o.lower.onnx.weights import matrix_of
from o2o.model import CUSTOM_DOMAIN, DOMAIN, Model, Signature, attribute, shape_of
from o2o.operators import core_attention
from o2o.operators.traits import is_elementwise, lookup_operands, traits_of
from o2o.quantization import metadata
from o2o.rewriting.activations import activation_of
from o2o.rewriting.attention.core_rule import CoreRule
from o2o.rewriting.attention.expand_attention import expand_attentions
from o2o.rewriting.attention.mask_rule import MaskRule
from o2o.rewriting.attention.proofs import Proofs
from o2o.rewriting.common_subexpression_elimination import eliminate_common_subexpressions
from o2o.rewriting.dead_code_elimination import live_nodes
from o2o.rewriting.matchers import producer_of
from o2o.rewriting.rewrite_rule import apply_rule
from o2o.signatures import capacity_of, decode_of

FORMS: dict[str, type[StandardForm]] = {form.name: form for form in (StandardForm, OrtForm)}


def lower_to_onnx(
    model: Model, form: str = "standard", logits: str = "last", max_block: int = MAX_BLOCK
) -> ir.Model:
    """Build the ONNX model of a Circle model's decode graph.

    Args:
        model: A Circle model with roles attached (`o2o.contract`). Its decode graph is changed.
        form: `standard`, or `ort` for ONNX Runtime's own operators.
        logits: `last` for the logits of the last token only, `all`, or `num_logits` for an input that says
            how many of the last tokens get logits.
        max_block: The largest block of MatMulNBits for int8 weights with one scale for each row. Larger
            blocks are faster. A row with fewer columns of whole blocks has smaller ones.

    Returns:
        The ONNX model. Its weights are read when it is written (`o2o.formats.onnx_writer`).

    Raises:
        ModelError: The model has no decode graph, or an operator that has no ONNX lowering.
    """
    if model.format != "circle":
        raise ModelError("ONNX needs a Circle model: pass the model that lower.litert.py read")
    decode = decode_of(model)
    _check_roles(decode)
    return _Lowering(model, decode, FORMS[form], logits, max_block).run()


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
        raise ModelError(f"{decode.name}: its position input has shape {list(shape)}, not [1]")


def _raise_attention(model: Model, graph: ir.Graph) -> str:
    """Turn each attention, fused or scattered, into `o2o.attention`. Return why one is left, or ""."""
    expand_attentions(model, graph)
    failures = apply_rule(model, graph, CoreRule()).failures
    apply_rule(model, graph, MaskRule(Proofs()))
    eliminate_common_subexpressions(model, graph)  # rotation tables that every layer repeats
    return (
        f"{model.locate(graph, failures[0][0])} is not recognized as attention: {failures[0][1]}"
        if failures
        else ""
    )


class _Lowering:
    """The lowering of one decode graph."""

    def __init__(
        self, model: Model, decode: Signature, form: type[StandardForm], logits: str, max_block: int
    ) -> None:
        self.model, self.graph, self.last = model, decode.graph, logits != "all"
        unrecognized = _raise_attention(model, self.graph)
        roles = {value: role_of(value) for value in self.graph.inputs}
        inputs: dict[str, ir.Value] = {role.kind: value for value, role in roles.items() if role is not None}
        label = model.label(self.graph)
        if unknown := [value.name for value, role in roles.items() if role is None and value.uses()]:
            raise ModelError(
                f"{label}: the input {unknown[0]} has no role in the o2o.contract: "
                "export the model with python -m export"
            )
        cache = inputs["key_cache"]
        layout = getattr(role_of(cache), "layout", None)
        if layout is None:
            raise ModelError(
                f"{label}: the cache {cache.name} has no layout in the o2o.contract: "
                "export the model with python -m export"
            )
        self.op = OnnxBuilder()
        capacity = capacity_of(decode)
        quantized = any(is_quantized(value) for value in self.graph.initializers.values())
        leading = form.leading_axes(quantized)
        self.tokens = TokenValues(model, self.graph, self.op, inputs, capacity, leading, unrecognized)
        self.logits_output = self.op.value("logits", FLOAT, [1])
        selected = logits == NUM_LOGITS
        self.num_logits = self.op.value(NUM_LOGITS, INT64, [1]) if selected else None
        self.form = form(self.tokens, max_block)
        self.caches = Caches(self.tokens)
        self.rows = CachedRows(self.tokens, self.caches, self._lower)
        self.norms = Norms(self.tokens)
        self.logits = next(
            v for v in self.graph.outputs if (role := role_of(v)) is not None and role.kind == "logits"
        )
        self.lm_head = _find_lm_head(self.logits)
        self._check_outputs()
        self._lowerings: dict[tuple[str, str], Rule] = {
            **dict.fromkeys(
                ((CUSTOM_DOMAIN, name) for name in core_attention.NAMES),
                lambda tokens, node: lower_core_attention(tokens, self.form, self.caches, node),
            ),
            (DOMAIN, "ROPE"): lambda tokens, node: lower_rope(tokens, self.form, node),
            (DOMAIN, "DYNAMIC_UPDATE_SLICE"): lambda tokens, node: self.caches.update(node),
            (DOMAIN, "FULLY_CONNECTED"): self._lower_fully_connected,
            (DOMAIN, "GATHER"): self._lower_lookup,
            (DOMAIN, "EMBEDDING_LOOKUP"): self._lower_lookup,
        }

    def _check_outputs(self) -> None:
        """Raise ModelError for outputs other than logits and updated caches: ONNX would not have them."""
        for value in self.graph.outputs:
            role = role_of(value)
            written = producer_of(value, "DYNAMIC_UPDATE_SLICE") is not None
            in_place = value.is_graph_input()  # by ATTENTION
            is_cache = role is not None and ((role.is_rows and written) or (role.is_cache and in_place))
            if value is not self.logits and not is_cache:
                raise ModelError(
                    f"{self.model.label(self.graph)}: the output {value.name} is neither logits nor a "
                    f"cache: remove it with remove.io.py"
                )

    def run(self) -> ir.Model:
        """Lower all nodes in order, and return the model."""
        live = live_nodes(self.graph)
        for node in self.graph:
            if node.outputs[0] in self.tokens.lowered:
                continue  # lowered together with another node
            if node.outputs[0] in self.rows.shared and node.op_type != "DYNAMIC_UPDATE_SLICE":
                continue  # lowered where something needs it
            if node in live and not all(map(self.tokens.is_token_independent, node.outputs)):
                self._lower(self.tokens, node)
        if unwritten := self.caches.unwritten():
            raise ModelError(f"{self.model.label(self.graph)}: no operator writes its cache {unwritten[0]}")
        return self._model()

    def _lower(self, tokens: TokenValues, node: ir.Node) -> None:
        if node.domain == DOMAIN and self._lower_group(tokens, node):
            return
        lowering = self._lowerings.get((node.domain, node.op_type))
        if lowering is not None:
            lowering(tokens, node)
        elif node.domain == DOMAIN:
            lower_operator(tokens, node)
        else:
            reason = "a custom operator has no ONNX lowering: use the LiteRT engine, or report this model"
            raise tokens.error(node, reason)

    def _lower_group(self, tokens: TokenValues, node: ir.Node) -> bool:
        """Lower the group of operators that `node` ends or begins, as one; whether there is one.

        The operators inside are lowered too. Where nothing else uses them, `_live_nodes` removes them.
        """
        output = node.outputs[0]
        if node.op_type == "ADD" and (group := self._following_norm(node)) is not None:
            self._lower_add_norm(tokens, node, group)
            return True
        if (group := self.norms.by_last.get(node)) is not None:
            x = tokens.operand(group.x, node, max(1, len(token_shape(output))))
            tokens.assign(output, self.form.norm(x, group.norm, output.name or ""))
            return True
        if (activation := activation_of(tokens.regions, node)) is not None:
            x = tokens.get(activation.x, node)
            tokens.assign(output, self.form.activation(x, activation.kind, output.name or ""))
            return True
        return False

    def _following_norm(self, node: ir.Node) -> NormNodes | None:
        """The norm of the result of `node`, an ADD of two vectors of a token; None if there is none."""
        output = node.outputs[0]
        shape = token_shape(output)
        same_shape = all(
            v is not None and not is_constant(v) and token_shape(v) == shape for v in node.inputs
        )
        if not same_shape or len(shape) != 1 or attribute(node, "fusedActivationFunction", 0):
            return None
        return self.norms.by_operand.get(output)

    def _lower_add_norm(self, tokens: TokenValues, node: ir.Node, group: NormNodes) -> None:
        """Lower ADD and the norm of its result."""
        total, output = node.outputs[0], group.last.outputs[0]
        rank = len(token_shape(total))
        x, y = (tokens.operand(value, node, rank) for value in node.inputs)
        results = self.form.add_norm(x, y, group.norm, (total.name or "", output.name or ""))
        for value, result in zip((total, output), results, strict=True):
            tokens.assign(value, result)

    def _lower_fully_connected(self, tokens: TokenValues, node: ir.Node) -> None:
        x, w, bias = [*node.inputs, None][:3]
        output = node.outputs[0]
        assert x is not None
        if attribute(node, "weightsFormat", 0):
            raise tokens.error(node, "shuffled weights are not supported")
        matrix = matrix_of(w, tokens.locate(node))
        rows = math.prod(shape_of(x)) // matrix.columns  # of one token
        operand = tokens.reshaped(x, node, [matrix.columns] if rows == 1 else [rows, matrix.columns])
        if node is self.lm_head and self.last:
            operand = self._last_row(operand)
        bias_vector = None if bias is None else constant_vector(tokens, bias, node)
        y = self.form.linear(operand, matrix, bias_vector, output.name or "")
        tokens.assign(output, with_activation(tokens, node, y))

    def _last_row(self, x: ir.Value) -> ir.Value:
        """The row of the last token in `x` [*leading, ...], or the last `num_logits` rows."""
        axis = len(self.tokens.leading) - 1
        start, *bounds = (self.op.constant([bound], "bound") for bound in (-1, np.iinfo(np.int64).max, axis))
        rows: Dim = 1
        if self.num_logits is not None:
            start, rows = self.op.node("Neg", [self.num_logits], [1], INT64, name="first"), NUM_LOGITS
        shape = [1] * axis + [rows] + dims(x)[axis + 1 :]
        return self.op.node("Slice", [x, start, *bounds], shape, name="last")

    def _lower_lookup(self, tokens: TokenValues, node: ir.Node) -> None:
        lookup = lookup_operands(node)
        assert lookup is not None
        table, ids = lookup
        output = node.outputs[0]
        if table in tokens.lowered:
            lower_operator(tokens, node)  # a lookup in the elements of the token
            return
        if attribute(node, "axis", 0) or attribute(node, "batchDims", 0):
            raise tokens.error(node, "only lookups of rows are supported")
        matrix = matrix_of(table, tokens.locate(node))
        rows = self.form.embedding(tokens.get(ids, node), matrix, output.name or "")
        tokens.assign(output, cast(tokens, rows, output))

    def _model(self) -> ir.Model:
        """The ONNX model of the nodes that were built."""
        logits = self._logits()
        past, present = self.caches.inputs_and_outputs()
        window_row = [] if self.tokens.window_row is None else [self.tokens.window_row]
        num_logits = [] if self.num_logits is None else [self.num_logits]
        inputs = [self.tokens.tokens, self.tokens.position, *window_row, *past, *num_logits]
        outputs = [logits, *present]
        for value, role in zip((*inputs[:2], logits), _ROLES, strict=True):
            value.meta["role"] = role
        for value in window_row:
            value.meta["role"] = Role("window_row")
        for value in num_logits:
            value.meta["role"] = Role(NUM_LOGITS)
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=_live_nodes(self.op.nodes, outputs),
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
        _attach_metadata(lowered, self.model)
        return lowered

    def _logits(self) -> ir.Value:
        """The output `logits`, [1, T, V], or [1, 1, V] of the last token."""
        logits = self.tokens.get(self.logits, self.logits.producer() or next(iter(self.graph)))
        V = shape_of(self.logits)[-1]
        if self.last and "T" in dims(logits):  # the LM head was not found, or has other users
            logits = self._last_row(logits)
        shape = [1, self.tokens.leading_of(logits)[-1], V]
        if dims(logits) == shape and logits.producer() is not None and logits.dtype == FLOAT:
            logits.name = "logits"
            return logits
        self.logits_output.shape = ir.Shape(shape)
        self.op.add("Reshape", [logits, self.op.constant([1, -1, V], "logits_shape")], [self.logits_output])
        return self.logits_output


_ROLES = Role("tokens"), Role("position"), Role("logits")


def _attach_metadata(lowered: ir.Model, model: Model) -> None:
    """Store the contract of `lowered`, and the history and quantization metadata of `model`, in `lowered`."""
    graph = lowered.graph
    io_values = ({value.name or "": value for value in values} for values in (graph.inputs, graph.outputs))
    signed = Model("circle", [graph], [Signature("decode", graph, *io_values)])
    text = json.dumps(contract.contract_of(signed), separators=(",", ":"))
    lowered.metadata_props[contract.METADATA_NAME] = text
    if quantization := dict(model.metadata).get(metadata.METADATA_NAME):
        lowered.metadata_props[metadata.METADATA_NAME] = quantization.decode()
    if (entries := history.dumps(model.history)) is not None:
        lowered.metadata_props[history.METADATA_NAME] = entries.decode()


def _find_lm_head(logits: ir.Value) -> ir.Node | None:
    """The FULLY_CONNECTED that computes the logits, or None.

    Only elementwise operators with constants, and reshapes, may follow it. They give the same result for the
    last token alone, so the LM head need not multiply the others. Without an LM head, all rows are computed
    and the last one is taken: slower, with the same result.
    """
    value = logits
    while (node := value.producer()) is not None and node.domain == DOMAIN:
        if len(value.uses()) > (0 if value is logits else 1):
            return None
        if node.op_type == "FULLY_CONNECTED":
            return node
        operands = [v for v in node.inputs if v is not None and not is_constant(v)]
        if len(operands) != 1 or not (is_elementwise(node) or traits_of(node).movement == "reshape"):
            return None
        (value,) = operands
    return None


def _live_nodes(nodes: list[ir.Node], outputs: list[ir.Value]) -> list[ir.Node]:
    """The nodes that `outputs` depend on, in the same order."""
    needed = set(outputs)
    live = []
    for node in reversed(nodes):
        if any(value in needed for value in node.outputs):
            live.append(node)
            needed |= {value for value in node.inputs if value is not None}
    return live[::-1]
