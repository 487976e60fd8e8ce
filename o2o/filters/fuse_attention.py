"""`fuse.attention.py`."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from o2o.attention import Attention
from o2o.contract import Layout, role_of
from o2o.errors import ModelError
from o2o.filters.fusion import Fusion, replace_output
from o2o.model import Model
from o2o.rewriting.axes import LAYOUT_OPERATORS, Axes, Factors, climb, matmul_axes
from o2o.rewriting.build import Builder, add_constant, attribute, shape_of
from o2o.rewriting.causality import Keys, at_position, position_leaf, prove_causal
from o2o.rewriting.clean import inner_graphs
from o2o.rewriting.match import (
    Miss,
    made_by,
    miss,
    no_activation,
    only_user,
    operand_and_scalar,
    require,
    scalar,
)
from o2o.rewriting.rope import Rotation, match_rotation


@dataclass
class Path:
    """How a value comes from its source: layout operators between, and what it is multiplied by."""

    source: ir.Value
    layout: list[ir.Node]
    scale: float = 1.0


@dataclass
class Scores:
    """The way from q k' to the softmax: layout operators, one scale, at most one mask."""

    matmul: ir.Node
    steps: list[ir.Node] = field(default_factory=list)  # from the product down, masks' nodes included
    scale: float = 1.0
    mask: ir.Value | None = None
    masked_by: ir.Node | None = None


@dataclass
class Projection:
    """A head projection x w' (FULLY_CONNECTED without bias)."""

    node: ir.Node
    x: ir.Value
    w: ir.Value


@dataclass
class Joined:
    """Keys or values as the scores see them: the new ones, and the cache they join, if any."""

    node: ir.Node | None = None  # CONCATENATION or DYNAMIC_UPDATE_SLICE
    past: ir.Value | None = None
    layout: Layout | None = None


@dataclass
class Block:
    """A proven attention block: its operands, and the FULLY_CONNECTED that gives its result."""

    attention: Attention
    last: ir.Node
    bidirectional: tuple[int, ...] | None = None  # shape of the zero mask that such attention needs


class FuseAttention(Fusion):
    """Fuse scattered attention blocks into ATTENTION.

        x - FC wq - heads - rotate - q --+
        x - FC wk - heads - rotate - k - cache' - q k' - scale - mask - SOFTMAX - p v - FC wo - y
        x - FC wv - heads ---------- v - cache' ------------------------------------+
                                       =>
        x, wq, wk, wv, wo, cos, sin, mask?, k_cache?, v_cache?, pos? -- ATTENTION -- y

    Found by dataflow from each SOFTMAX, whatever the operators are called or numbered: any number of
    layers and heads, grouped-query or not, prefill and decode, rotated or not, caches joined by
    CONCATENATION or DYNAMIC_UPDATE_SLICE. Axes are followed through every reshape and transpose, and a mask
    is computed at every position: a causal one needs no operand, any other stays as the mask operand. A
    fused decode step writes its keys and values into its caches, in place, at `pos`.

    Left alone, with the reason (--explain): biases, several tokens' positions out of order, scales other
    than 1/sqrt(H), masks that a concatenated cache cannot keep. A concatenation without a mask is right at
    one position only, that of a full cache; with --assume-full-cache that is taken as given.
    """

    name = "fuse.attention.py"
    usage_example = "fuse.attention.py < decode_.circle > decode.circle"
    formats = ("circle",)
    anchor = ("SOFTMAX",)
    noun = "attention block"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--assume-full-cache",
            metavar="POSITION",
            help="fuse concatenated caches without a mask too: the input of this name is always their length",
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        self.full_cache: str | None = args.assume_full_cache
        self.inner = {inner for graph in model.graphs for node in graph for inner in inner_graphs(node)}
        self.proven: dict[tuple[ir.Value, Keys], ir.Value | Miss | None] = {}  # layers share their masks
        super().apply(model, args)

    def match(self, node: ir.Node) -> Block:
        scores = self._scores(node)
        weighted = self._follow_down(node.outputs[0], "the attention weights", "BATCH_MATMUL")
        product, weights_path = weighted
        if product.inputs[0] is not weights_path[-1]:
            miss("the attention weights are not the left operand of their product with v", product.outputs[0])
        last, output_path = self._follow_down(product.outputs[0], "the attention result", "FULLY_CONNECTED")
        out = self._projection(last.outputs[0], "the output")
        q_value, k_value = scores.matmul.inputs
        v_value = product.inputs[1]
        assert q_value is not None
        assert k_value is not None
        assert v_value is not None

        q_path = self._path(q_value)
        q_rotation, q = self._rotated(q_path.source, "q")
        k_path = self._path(k_value)
        k_joined, k_new = self._joined(k_path.source)
        k_inner = self._path(k_new)
        k_rotation, k = self._rotated(k_inner.source, "k")
        v_path = self._path(v_value)
        v_joined, v_new = self._joined(v_path.source)
        v_inner = self._path(v_new)
        v = self._projection(v_inner.source, "v")
        if not (q.x is k.x is v.x):
            miss("q, k and v are not projections of one tensor", k.x)
        if (q_rotation is None) != (k_rotation is None):
            miss("one of q and k is rotated, the other is not", q.node.outputs[0])
        if k_joined.node is not None and k_inner.scale != 1:
            miss("the keys are scaled before they are cached", k_new)
        if v_path.scale != 1 or v_inner.scale != 1:
            miss("the values are scaled", v_value)

        factors = self._factors(q, k, v, scores, k_joined)
        T, S = factors.sizes["T"], factors.sizes["S"]
        scale = scores.scale * q_path.scale * k_path.scale * k_inner.scale
        if not math.isclose(scale, factors.sizes["H"] ** -0.5, rel_tol=1e-5):
            miss(f"the scale is {scale:.6g}, not 1/sqrt({factors.sizes['H']})", scores.matmul.outputs[0])

        q_axes = self._propagate(factors, q, q_rotation, q_path.layout, "T", "KGH")
        new = Factors({**factors.sizes, "S": T})
        k_axes = self._propagate(new, k, k_rotation, k_inner.layout, "S", "KH")
        v_axes = new.through(v_inner.layout, self._projected(new, v, "S", "KH"))
        k_axes = self._join(factors, k_joined, k_axes, scores.matmul)
        v_axes = self._join(factors, v_joined, v_axes, product)
        k_axes = factors.through(k_path.layout, k_axes, broadcast="G")
        v_axes = factors.through(v_path.layout, v_axes, broadcast="G")
        scores_axes = matmul_axes(scores.matmul, q_axes, k_axes)
        scores_axes, mask_axes = self._through_scores(factors, scores, scores_axes)
        if scores_axes[-1] != factors.axes(["S"])[0]:
            miss("the softmax does not go over the keys", node.outputs[0])
        weights_axes = factors.through(self._nodes(weights_path), scores_axes)
        y_axes = factors.through(self._nodes(output_path), matmul_axes(product, weights_axes, v_axes))
        joined = out.node.inputs[0]
        assert joined is not None
        if y_axes != self._flat_axes(factors, joined, "T", "KGH"):
            miss("the heads are not put side by side, in order, before the output projection", joined)

        cos, sin = self._tables(q_rotation, k_rotation, T, factors.sizes["H"])
        attention = Attention(q.x, q.w, k.w, v.w, out.w, cos, sin)
        attention.k_cache, attention.v_cache = k_joined.past, v_joined.past
        if attention.k_cache is None and cos is None:
            miss("without cache and rotation nothing would tell the head dimension", q.node.outputs[0])
        self._check_layouts(attention, k_joined, v_joined)
        return self._with_mask(attention, last, scores, mask_axes, k_joined, v_joined, T, S, factors)

    def rewrite(self, model: Model, graph: ir.Graph, match: Block) -> None:
        attention, old = match.attention, match.last.outputs[0]
        if match.bidirectional is not None:
            zeros = np.zeros(match.bidirectional, attention.x.dtype.numpy())  # type: ignore[union-attr]
            attention.mask = add_constant(graph, zeros, "no_mask")
        op = Builder(graph, before=match.last)
        T, H = attention.T, attention.H
        for table in ("cos", "sin"):
            value = getattr(attention, table)
            if value is not None:
                setattr(attention, table, op.reshape(value, [1, T, H], name=table))
        attention.x = op.reshape(attention.x, [1, T, shape_of(attention.x)[-1]], name="x")
        result = op.node("ATTENTION", attention.operands(), [1, T, shape_of(old)[-1]])
        replace_output(model, old, op.reshape(result, shape_of(old)))

    # --- walking ------------------------------------------------------------------------------------

    def _scores(self, softmax: ir.Node) -> Scores:
        """Up from the softmax to q k'."""
        value = softmax.inputs[0]
        assert value is not None
        beta = float(attribute(softmax, "beta", 1.0))
        steps: list[ir.Node] = []
        scale = 1.0
        masks: list[tuple[ir.Value, ir.Node]] = []
        while True:
            node = require(
                value,
                "the scores",
                "BATCH_MATMUL",
                "ADD",
                "MUL",
                "DIV",
                "SELECT_V2",
                "SELECT",
                *LAYOUT_OPERATORS,
            )
            if node.op_type == "BATCH_MATMUL":
                break
            steps.append(node)
            no_activation(node)
            if node.op_type in ("MUL", "DIV") and (factor := self._factor(node)) is not None:
                value, number = factor
                scale *= number
                continue
            if node.op_type in ("ADD", "SELECT", "SELECT_V2"):
                if scale != 1.0 and not masks:
                    miss("the scale is applied to the mask too", node.outputs[0])
                value, mask = self._masked(node)
                masks.append((mask, node))
                continue
            if node.op_type in ("MUL", "DIV"):
                miss(
                    "the scores are multiplied by something that is not one constant number", node.outputs[0]
                )
            value = node.inputs[0]
            assert value is not None
        if len(masks) > 1:
            miss("the scores have two masks", masks[0][0])
        if beta != 1 and masks:
            miss("the softmax scales the mask too", softmax.outputs[0])
        found = Scores(node, steps[::-1], scale * beta)
        if masks:
            found.mask, found.masked_by = masks[0]
        return found

    def _factor(self, node: ir.Node) -> tuple[ir.Value, float] | None:
        """(x, c) when `node` is x, in its shape, times or divided by a constant number."""
        if node.op_type == "MUL":
            found = operand_and_scalar(node)
        else:
            x, number = node.inputs[0], scalar(node.inputs[1])
            found = (x, 1 / number) if number and x is not None else None
        return found if found is not None and shape_of(found[0]) == shape_of(node.outputs[0]) else None

    def _masked(self, node: ir.Node) -> tuple[ir.Value, ir.Value]:
        """(scores, mask) of the node that masks: the scores are the operand that leads to q k'."""
        if node.op_type in ("SELECT", "SELECT_V2"):
            miss("the mask selects instead of being added", node.outputs[0])
        first, second = node.inputs
        assert first is not None
        assert second is not None
        for scores, mask in ((first, second), (second, first)):
            if self._leads_to_product(scores):
                if shape_of(scores) != shape_of(node.outputs[0]):
                    miss("the mask is larger than the scores", mask)
                return scores, mask
        miss("no operand of the sum comes from a product of q and k", node.outputs[0])

    def _leads_to_product(self, value: ir.Value) -> bool:
        while (node := made_by(value, "MUL", "DIV", "ADD", *LAYOUT_OPERATORS)) is not None:
            if node.op_type == "ADD":
                return any(v is not None and self._leads_to_product(v) for v in node.inputs)
            factor = self._factor(node) if node.op_type in ("MUL", "DIV") else None
            value = factor[0] if factor is not None else node.inputs[0]  # type: ignore[assignment]
        return made_by(value, "BATCH_MATMUL") is not None

    def _follow_down(self, value: ir.Value, what: str, until: str) -> tuple[ir.Node, list[ir.Value]]:
        """Down from `value` through layout operators to the one `until`; the values on the way."""
        way = [value]
        while True:
            node = only_user(way[-1], what)
            if node.op_type == until:
                return node, way
            if node.op_type not in LAYOUT_OPERATORS:
                miss(f"{what} should go into {until}, not {node.op_type}", way[-1])
            way.append(node.outputs[0])

    def _nodes(self, way: list[ir.Value]) -> list[ir.Node]:
        """The layout operators on the way that `_follow_down` went."""
        return [value.producer() for value in way[1:]]  # type: ignore[misc]

    def _path(self, value: ir.Value) -> Path:
        """Up through layout operators and scales."""
        path = Path(value, [])
        while True:
            path.source, chain = climb(path.source)
            path.layout = chain + path.layout
            node = made_by(path.source, "MUL", "DIV")
            factor = self._factor(node) if node is not None else None
            if node is None or factor is None:
                return path
            no_activation(node)
            path.source, number = factor
            path.scale *= number

    def _joined(self, value: ir.Value) -> tuple[Joined, ir.Value]:
        """The cache join that makes `value`, and the new keys or values that go in; none is fine."""
        node = made_by(value, "CONCATENATION", "DYNAMIC_UPDATE_SLICE")
        if node is None:
            return Joined(), value
        no_activation(node)
        past, new = node.inputs[:2]
        if len(node.inputs) != (2 if node.op_type == "CONCATENATION" else 3) or past is None or new is None:
            miss("a cache joins more than the past and the new", value)
        if not past.is_graph_input():
            miss("the past of the cache is not a graph input", past)
        if past.graph in self.inner:
            miss("the cache belongs to a graph that an operator runs: nobody sees it written in place", past)
        only_user(past, "the cache, which ATTENTION writes in place,")
        return Joined(node, past), new

    def _rotated(self, value: ir.Value, what: str) -> tuple[Rotation | None, Projection]:
        if made_by(value, "FULLY_CONNECTED") is not None:
            return None, self._projection(value, what)
        rotation = match_rotation(value)
        source, _ = climb(rotation.x)
        return rotation, self._projection(source, what)

    def _projection(self, value: ir.Value, what: str) -> Projection:
        node = require(value, what, "FULLY_CONNECTED")
        no_activation(node)
        x, w, *bias = node.inputs
        if bias and bias[0] is not None:
            miss(f"the projection of {what} has a bias", bias[0])
        assert x is not None
        assert w is not None
        x = _unflattened(x)
        if len(shape_of(w)) != 2:
            miss(f"the weights of {what} are not a matrix (reshape.fc_weight.py makes them one)", w)
        if w.dtype != x.dtype or attribute(node, "weightsFormat", 0):
            miss(f"the weights of {what} are quantised or shuffled: do that after fusing", w)
        return Projection(node, x, w)

    # --- axes ---------------------------------------------------------------------------------------

    def _factors(
        self, q: Projection, k: Projection, v: Projection, scores: Scores, joined: Joined
    ) -> Factors:
        """The sizes of the block: T tokens, S keys, K key heads, G query heads a key head, H head dim."""
        shape = shape_of(q.x)
        if any(dim != 1 for dim in shape[:-2]):
            miss("ATTENTION takes one batch", q.x)
        T = shape[-2] if len(shape) > 1 else 1
        lhs = shape_of(scores.matmul.inputs[0])  # type: ignore[arg-type]
        H = lhs[-2] if attribute(scores.matmul, "adjointLhs") else lhs[-1]
        rows = [shape_of(p.w)[0] for p in (q, k, v)]
        if rows[1] != rows[2]:
            miss("keys and values differ in size", v.w)
        if any(n % H for n in rows) or rows[0] % rows[1]:
            miss(f"projections of {rows} rows do not divide into heads of {H}", scores.matmul.outputs[0])
        S = T
        if joined.node is not None:
            output = shape_of(joined.node.outputs[0])
            S = math.prod(output) // rows[1]
        K = rows[1] // H
        return Factors({"T": T, "S": S, "K": K, "G": rows[0] // rows[1], "H": H})

    def _projected(self, factors: Factors, projection: Projection, tokens: str, heads: str) -> Axes:
        """The axes of a projection's result."""
        return self._flat_axes(factors, projection.node.outputs[0], tokens, heads)

    def _flat_axes(self, factors: Factors, value: ir.Value, tokens: str, heads: str) -> Axes:
        """The axes of a value with a row a token, in which its heads stand side by side."""
        shape = shape_of(value)
        axes = factors.axes(*[()] * (len(shape) - 2), tokens, heads)
        if len(shape) < 2 or factors.shape(axes) != shape:
            miss(f"a projection of {factors.sizes} should be {list(factors.shape(axes))}", value)
        return axes

    def _propagate(
        self,
        factors: Factors,
        projection: Projection,
        rotation: Rotation | None,
        layout: list[ir.Node],
        tokens: str,
        heads: str,
    ) -> Axes:
        """The axes of q or of new k, from its projection through its rotation."""
        axes = self._projected(factors, projection, tokens, heads)
        if rotation is None:
            return factors.through(layout, axes)
        _, before = climb(rotation.x)
        axes = factors.through(before, axes)
        token_axis, head_axis = factors.axes(tokens, "H")
        if axes[-1] != head_axis:
            miss("the rotation does not go over the head dimension", rotation.x)
        for table in (rotation.cos, rotation.sin):
            shape = shape_of(table)
            wanted = tuple(
                dim if axis and axis in (token_axis, head_axis) else 1
                for axis, dim in zip(axes, shape_of(rotation.x), strict=True)
            )
            if (1,) * (len(wanted) - len(shape)) + shape != wanted:
                miss(
                    f"a rotation table should be {list(wanted)}: one row a token, the same for all heads",
                    table,
                )
        return factors.through(layout, axes)

    def _join(self, factors: Factors, joined: Joined, axes: Axes, until: ir.Node) -> Axes:
        """The axes after the cache: the token axis of the new becomes that of the whole.

        until: the BATCH_MATMUL that takes what is joined.
        """
        if joined.node is None:
            return axes
        output = joined.node.outputs[0]
        after, new = shape_of(output), shape_of(joined.node.inputs[1])  # type: ignore[arg-type]
        grown = [axis for axis in range(len(after)) if after[axis] != new[axis]]
        if len(grown) != 1 or axes[grown[0]] not in ((), ("S",)):
            miss("the cache does not grow along its tokens alone", output)
        if joined.node.op_type == "CONCATENATION":
            if attribute(joined.node, "axis", 0) % len(after) != grown[0]:
                miss("the cache is not joined along its tokens", output)
            # it goes on reading the cache that ATTENTION writes, if anyone else needs it
            while (user := only_user(output, "the joined cache")) is not until:
                output = user.outputs[0]
        axes = tuple(("S",) if axis == grown[0] else axes[axis] for axis in range(len(after)))
        for layout, names in (("BNTH", ((), "K", "S", "H")), ("BTNH", ((), "S", "K", "H"))):
            wanted = factors.axes(*names)
            if axes == wanted and after == factors.shape(wanted):
                joined.layout = layout  # type: ignore[assignment]
                return axes
        miss("the cache is neither [1, K, S, H] nor [1, S, K, H]", joined.node.outputs[0])

    def _check_layouts(self, attention: Attention, k: Joined, v: Joined) -> None:
        """Miss unless both caches have the layout that readers of ATTENTION will take them to have."""
        if k.past is None or v.past is None:
            return
        if k.past is v.past:
            miss("keys and values are in one cache", k.past)
        if k.layout != v.layout:
            miss(f"keys are cached as {k.layout}, values as {v.layout}", v.past)
        try:
            told = attention.layout
        except ModelError as error:
            miss(str(error), k.past)
        role = role_of(v.past)
        if told != k.layout or (role is not None and role.layout not in (None, k.layout)):
            miss(f"the caches are joined as {k.layout}, but the contract says otherwise", k.past)

    def _through_scores(self, factors: Factors, scores: Scores, axes: Axes) -> tuple[Axes, Axes]:
        """The axes that the softmax sees, and those at the point where the mask is added."""
        at_mask = axes
        for node in scores.steps:
            if node.op_type in LAYOUT_OPERATORS:
                axes = factors.through([node], axes)
            if node is scores.masked_by:
                at_mask = axes
        return axes, at_mask

    def _tables(
        self, q: Rotation | None, k: Rotation | None, T: int, H: int
    ) -> tuple[ir.Value | None, ir.Value | None]:
        """cos and sin as they were before anything was reshaped for broadcasting."""
        if q is None or k is None:
            return None, None
        tables = []
        for mine, other in ((q.cos, k.cos), (q.sin, k.sin)):
            table = self._table(mine, T, H)
            if table is not self._table(other, T, H):
                miss("q and k are rotated by different tables", other)
            tables.append(table)
        return tables[0], tables[1]

    def _table(self, value: ir.Value, T: int, H: int) -> ir.Value:
        source, chain = climb(value)
        plain = all(node.op_type in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE") for node in chain)
        return source if plain and math.prod(shape_of(source)) == T * H else value

    # --- masks and positions ------------------------------------------------------------------------

    def _with_mask(
        self,
        attention: Attention,
        last: ir.Node,
        scores: Scores,
        mask_axes: Axes,
        k: Joined,
        v: Joined,
        T: int,
        S: int,
        factors: Factors,
    ) -> Block:
        """Settle what is visible and where new keys go: the mask and position operands."""
        block = Block(attention, last)
        kind = k.node.op_type if k.node is not None else None
        if kind != (v.node.op_type if v.node is not None else None):
            miss("keys and values join their caches differently", last.outputs[0])
        mask = self._aligned_mask(scores, mask_axes, T, S, factors)
        if kind == "CONCATENATION":
            attention.pos = self._concatenated_position(mask, Keys(T, S - T, appended=True), last)
            return block
        keys = Keys(T, 0 if kind is None else S, appended=kind is None)
        if kind == "DYNAMIC_UPDATE_SLICE":
            attention.pos = self._written_position(k, keys)
            if self._written_position(v, keys) is not attention.pos:
                miss("keys and values are written at different positions", last.outputs[0])
        if mask is None:
            block.bidirectional = None if kind is None and T == 1 else (1, 1, T, S)
            return block
        try:
            leaf = self._prove(mask, keys)
            if leaf is not None and leaf is not attention.pos:
                miss("the mask follows another position than the cache", mask)
        except Miss:
            attention.mask = mask  # not the causal one, or not provably: it stays as it is
        return block

    def _concatenated_position(self, mask: ir.Value | None, keys: Keys, last: ir.Node) -> ir.Value:
        """The position at which a concatenated cache means the same as one written in place."""
        position = None
        if mask is not None and (leaf := self._causal_or_zero(mask, keys)) is not None:
            return leaf
        if self.full_cache is not None and keys.T == 1:
            graph = last.graph
            assert graph is not None
            position = next((value for value in graph.inputs if value.name == self.full_cache), None)
            if position is None:
                miss(f"--assume-full-cache: there is no input {self.full_cache}", last.outputs[0])
            return position
        miss(
            "the cache is concatenated without a mask: all of it counts, which is the same as one written "
            "in place only when it is full (--assume-full-cache POSITION takes that as given)",
            last.outputs[0],
        )

    def _causal_or_zero(self, mask: ir.Value, keys: Keys) -> ir.Value | None:
        """The position that a causal mask follows; None for a mask that hides nothing."""
        if position_leaf(mask, "the mask") is None and not np.any(at_position(mask, None, 0, "the mask")):
            return None
        leaf = self._prove(mask, keys)
        if leaf is None:
            miss("the mask does not follow a position", mask)
        return leaf

    def _prove(self, mask: ir.Value, keys: Keys) -> ir.Value | None:
        key = (mask, keys)
        if key not in self.proven:
            try:
                self.proven[key] = prove_causal(mask, keys)
            except Miss as reason:
                self.proven[key] = reason
        found = self.proven[key]
        if isinstance(found, Miss):
            raise found
        return found

    def _aligned_mask(self, scores: Scores, axes: Axes, T: int, S: int, factors: Factors) -> ir.Value | None:
        """The mask, if its last two axes are queries and keys and all heads share it. Raises Miss."""
        mask = scores.mask
        if mask is None:
            return None
        tokens, keys = factors.axes("T", "S")
        shape = (1,) * (len(axes) - len(shape_of(mask))) + shape_of(mask)
        if axes[-1] != keys or shape[-1] not in (1, S):
            miss(f"the mask is not [.., {T}, {S}], or is added to scores that are not", mask)
        if any(dim != 1 for dim in shape[:-2]) or (shape[-2] != 1 and axes[-2] != tokens):
            miss("the mask differs from head to head", mask)
        return mask

    def _written_position(self, joined: Joined, keys: Keys) -> ir.Value:
        """The position that DYNAMIC_UPDATE_SLICE writes at. Raises Miss unless its start is (.., pos, ..)."""
        assert joined.node is not None
        start = joined.node.inputs[2]
        assert start is not None
        after, new = shape_of(joined.node.outputs[0]), shape_of(joined.node.inputs[1])  # type: ignore[arg-type]
        axis = next(i for i in range(4) if after[i] != new[i])
        leaf = position_leaf(start, "the row that is written")
        if leaf is None:
            miss("the cache is always written at the same row", start)
        if math.prod(shape_of(leaf)) not in (1, keys.T):
            miss(f"the written row depends on {leaf.name}, which is no position of {keys.T} tokens", start)
        for position in keys.positions:
            numbers = at_position(start, leaf, position, "the row that is written")
            if [int(n) for n in numbers] != [position if i == axis else 0 for i in range(4)]:
                miss(f"at position {position} the cache is written at {numbers.tolist()}", start)
        return leaf


def _unflattened(x: ir.Value) -> ir.Value:
    """x before its rows were only counted differently ([1, T, D] as [T, D])."""
    source, chain = climb(x)
    plain = all(node.op_type in ("RESHAPE", "EXPAND_DIMS", "SQUEEZE") for node in chain)
    return source if plain and shape_of(source)[-1:] == shape_of(x)[-1:] else x


main = FuseAttention.main
