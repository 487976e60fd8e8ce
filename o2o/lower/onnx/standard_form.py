"""The form `standard`: operators of ONNX opset 24 only, for any conforming runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from o2o.formats.computed_tensors import lazy_floats
from o2o.formats.tensors import with_shape
from o2o.lower.onnx.builder import BOOL, FLOAT, Dim, dims
from o2o.lower.onnx.cached_attention import CachedAttention, Heads, ProjectedAttention, Scores
from o2o.lower.onnx.norms import Norm
from o2o.lower.onnx.per_token import TokenValues
from o2o.lower.onnx.weights import Matrix

GELU = {"gelu": "none", "gelu_tanh": "tanh"}
"""The attribute `approximate` of Gelu, by the kind of activation."""
QUICK_GELU_FACTOR = 1.702
MAX_BLOCK = 128
"""Columns of a block of int8 weights at most, where a row has one scale."""


class StandardForm:
    """Builds the parts of a decoder from standard operators. Other forms override its methods."""

    name: ClassVar[str] = "standard"
    opsets: ClassVar[dict[str, int]] = {"": 24}

    @classmethod
    def leading_axes(cls, quantized: bool) -> list[Dim]:
        """Return the leading axes of ONNX values.

        Args:
            quantized: Whether the model has quantized weights.

        Returns:
            [T] or [1, T].
        """
        return ["T"]  # Gemm needs two axes

    def __init__(self, tokens: TokenValues, max_block: int = MAX_BLOCK) -> None:
        self.tokens, self.op, self.max_block = tokens, tokens.op, max_block
        self._shared: dict[str, ir.Value] = {}

    def norm(self, x: ir.Value, norm: Norm, name: str) -> ir.Value:
        """Build a norm over the last axis.

        Args:
            x: [..., D].
            norm: Its weight, bias and epsilon.
            name: The name of the result.

        Returns:
            [..., D].
        """
        op_type = "LayerNormalization" if norm.centered else "RMSNormalization"
        operands = [x, norm.weight, norm.bias]
        return self.op.node(op_type, operands, dims(x), name=name, axis=-1, epsilon=norm.epsilon)

    def add_norm(
        self, x: ir.Value, y: ir.Value, norm: Norm, names: tuple[str, str]
    ) -> tuple[ir.Value, ir.Value]:
        """Build x + y, and the norm of the sum.

        Args:
            x: [..., D].
            y: [..., D].
            norm: Its weight, bias and epsilon.
            names: The names of the two results.

        Returns:
            The sum and the norm, [..., D].
        """
        total = self.op.node("Add", [x, y], dims(x), name=names[0])
        return total, self.norm(total, norm, names[1])

    def activation(self, x: ir.Value, kind: str, name: str) -> ir.Value:
        """Build an activation.

        Args:
            x: Any shape.
            kind: A key of `o2o.rewriting.activations.FUNCTIONS`.
            name: The name of the result.

        Returns:
            The shape of x.
        """
        if kind in GELU:
            return self.op.node("Gelu", [x], dims(x), name=name, approximate=GELU[kind])
        scaled = x
        if kind == "quick_gelu":
            factor = self.op.constant(QUICK_GELU_FACTOR, "factor", np.float32)
            scaled = self.op.node("Mul", [x, factor], dims(x), name=f"{name}/scaled")
        gate = self.op.node("Sigmoid", [scaled], dims(x), name=f"{name}/gate")
        return self.op.node("Mul", [x, gate], dims(x), name=name)

    # weights -----------------------------------------------------------------------------------------

    def linear(self, x: ir.Value, matrix: Matrix, bias: ir.Value | None, name: str) -> ir.Value:
        """Build x w' + bias.

        Args:
            x: [..., columns].
            matrix: w [rows, columns].
            bias: [rows], or None.
            name: The name of the result.

        Returns:
            [..., rows].
        """
        first, *rest = dims(x)[:-1]
        flat = self.op.reshape(x, ["rows" if rest else first, matrix.columns])
        shape = [dims(flat)[0], matrix.rows]
        y = self.op.node("Gemm", [flat, self.float32_matrix(matrix), bias], shape, name=name, transB=1)
        return self.op.reshape(y, [*dims(x)[:-1], matrix.rows])

    def float32_matrix(self, matrix: Matrix) -> ir.Value:
        """Build the conversion of a matrix to float32, once a graph.

        Args:
            matrix: [rows, columns].

        Returns:
            float32 [rows, columns].
        """
        stored = self.stored(matrix)
        shape = [matrix.rows, matrix.columns]
        if matrix.scales is None:
            if stored.dtype == FLOAT:
                return stored
            return self._shared_value(
                f"{matrix.name}/float32",
                lambda name: self.op.node("Cast", [stored], shape, FLOAT, name, to=int(FLOAT)),
            )
        per_row = matrix.block == matrix.columns
        scales_shape = (matrix.rows,) if per_row else (matrix.rows, matrix.columns // matrix.block)
        scales = self.scales(matrix, scales_shape)
        blocks: dict[str, Any] = {"axis": 0} if per_row else {"axis": 1, "block_size": matrix.block}
        operands = [stored, scales, self.zero_points(matrix)]
        return self._shared_value(
            f"{matrix.name}/float32",
            lambda name: self.op.node("DequantizeLinear", operands, shape, FLOAT, name, **blocks),
        )

    def zero_points(self, matrix: Matrix) -> ir.Value | None:
        """Return the constant of a matrix's zero points.

        Args:
            matrix: A matrix.

        Returns:
            [rows] in the stored dtype; None without zero points.
        """
        if matrix.zeros is None:
            return None
        zeros = matrix.zeros.astype(matrix.tensor.dtype.numpy())
        key = "zeros", *matrix.key
        tensor = ir.Tensor(zeros, matrix.tensor.dtype)
        return self.op.constant_once(key, lambda: tensor, f"{matrix.name}/zero_points")

    def stored(self, matrix: Matrix) -> ir.Value:
        """Return the constant of a matrix in its stored dtype.

        Args:
            matrix: [rows, columns].

        Returns:
            [rows, columns], without conversion.
        """
        tensor, shape = matrix.tensor, (matrix.rows, matrix.columns)
        if tuple(tensor.shape.numpy()) != shape:
            tensor = with_shape(tensor, shape, matrix.name)
        return self.op.constant_once(matrix.key, lambda: tensor, matrix.name)

    def scales(self, matrix: Matrix, shape: tuple[int, ...]) -> ir.Value:
        """Return the constant of a quantized matrix's scales.

        Args:
            matrix: A quantized matrix.
            shape: (rows,), (rows, blocks) or (rows, blocks, 1). A scale per row is repeated for each block.

        Returns:
            float32 of that shape.
        """
        assert matrix.scales is not None
        read_scales = matrix.scales

        def reshaped() -> np.ndarray:
            scales = read_scales()
            return (np.broadcast_to(scales, shape[:2]) if len(shape) > 1 else scales).reshape(shape)

        key = "scales", shape, *matrix.key
        return self.op.constant_once(key, lambda: lazy_floats(reshaped, shape), f"{matrix.name}/scales")

    def embedding(self, ids: ir.Value, matrix: Matrix, name: str) -> ir.Value:
        """Build an embedding lookup.

        Args:
            ids: Row numbers, any shape.
            matrix: The table [rows, columns].
            name: The name of the result.

        Returns:
            [*ids.shape, columns], in the stored dtype, or float32 for a quantized table.
        """
        shape = [*dims(ids), matrix.columns]
        if matrix.scales is None:
            return self.op.node("Gather", [self.stored(matrix), ids], shape, name=name, axis=0)
        if matrix.block != matrix.columns or matrix.tensor.dtype != ir.DataType.INT8:
            return self.op.node("Gather", [self.float32_matrix(matrix), ids], shape, name=name, axis=0)
        rows = self.op.node("Gather", [self.stored(matrix), ids], shape, name=f"{name}/rows", axis=0)
        floats = self.op.node("Cast", [rows], shape, FLOAT, f"{name}/numbers", to=int(FLOAT))
        if matrix.zeros is not None:
            zeros = self.op.constant(matrix.zeros.reshape(-1, 1), f"{name}/zeros", np.float32)
            zero = self.op.node("Gather", [zeros, ids], [*dims(ids), 1], name=f"{name}/zero", axis=0)
            floats = self.op.node("Sub", [floats, zero], shape, name=f"{name}/centered")
        scales = self.scales(matrix, (matrix.rows, 1))
        scale = self.op.node("Gather", [scales, ids], [*dims(ids), 1], name=f"{name}/scale", axis=0)
        return self.op.node("Mul", [floats, scale], shape, name=name)

    # attention ---------------------------------------------------------------------------------------

    def rope(self, heads: Heads, name: str) -> ir.Value:
        """Build the rotation of heads.

        Args:
            heads: Queries or keys, to be rotated by their tables.
            name: The name of the result.

        Returns:
            [1, T, count * H].
        """
        x = self.op.reshape(heads.value, [1, "T", heads.count * heads.H])
        return self.rotary_embedding(x, heads, name)

    def rotary_embedding(self, x: ir.Value, heads: Heads, name: str) -> ir.Value:
        """Build RotaryEmbedding.

        Args:
            x: Queries or keys, [1, T, count * H] or [1, count, T, H].
            heads: Their number, size and tables.
            name: The name of the result.

        Returns:
            The shape of x.
        """
        tables = heads.tables
        assert tables is not None
        ids = self._shared_value("position_ids", self._position_ids)
        attributes: dict[str, Any] = {"rotary_embedding_dim": tables.R} if tables.R != heads.H else {}
        if tables.R != heads.H or len(dims(x)) == 3:
            attributes["num_heads"] = heads.count
        return self.op.node(
            "RotaryEmbedding",
            [x, tables.cos, tables.sin, ids],
            dims(x),
            name=name,
            interleaved=int(tables.interleaved),
            **attributes,
        )

    def rope_broadcast(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        """Build ROPE by computed tables, as arithmetic.

        Args:
            x: [*leading, heads, H].
            cos: A table that broadcasts to x.
            sin: A table that broadcasts to x.

        Returns:
            [*leading, heads, H].
        """
        shape = dims(x)
        half = int(shape[-1]) // 2
        halves = [self.op.value(name, FLOAT, [*shape[:-1], half]) for name in ("lower", "upper")]
        self.op.add("Split", [x], halves, axis=-1, num_outputs=2)
        negative = self.op.node("Neg", [halves[1]], dims(halves[1]))
        swapped = self.op.node("Concat", [negative, halves[0]], shape, axis=-1)
        products = [self.op.node("Mul", pair, shape) for pair in ([x, cos], [swapped, sin])]
        return self.op.node("Add", products, shape, name="rotated")

    def by_head(self, heads: Heads, name: str) -> ir.Value:
        """Build the layout of attention operators, rotated.

        Args:
            heads: Queries, keys or values.
            name: The prefix of names.

        Returns:
            [1, count, T, H].
        """
        y = self.op.reshape(heads.value, [1, "T", heads.count, heads.H], f"{name}_heads")
        y = self.op.transpose(y, [0, 2, 1, 3], f"{name}_by_head")
        return y if heads.tables is None else self.rotary_embedding(y, heads, f"{name}_rotated")

    def attend_projected(self, of: ProjectedAttention) -> ir.Value:
        """Build projections and attention.

        Args:
            of: Their operands.

        Returns:
            [*leading, N * H].
        """
        q, k, v = (
            self.linear(of.x, matrix, bias, f"{of.name}/{matrix.name}")
            for matrix, bias in zip(of.matrices, of.biases, strict=True)
        )
        heads = Heads(q, of.N, of.H, of.tables), Heads(k, of.K, of.H, of.tables), Heads(v, of.K, of.H)
        return self.attend(CachedAttention(*heads, of.keys, of.values, of.scores, of.name))

    def attend(self, of: CachedAttention) -> ir.Value:
        """Build the cache updates and attention.

        Args:
            of: Their operands.

        Returns:
            [*leading, N * H].
        """
        q, k, v = (
            self.by_head(heads, f"{of.name}/{name}")
            for heads, name in ((of.q, "q"), (of.k, "k"), (of.v, "v"))
        )
        for cache, new in ((of.keys, k), (of.values, v)):
            self.op.add("TensorScatter", [cache.past, new, cache.row], [cache.present], axis=2)
        return self._attended(q, of.keys.present, of.values.present, of.scores, of.name)

    def attend_to(
        self, heads: Heads, keys: ir.Value, values: ir.Value, scores: Scores, name: str
    ) -> ir.Value:
        """Build attention to rows that are written already.

        Args:
            heads: Queries.
            keys: [1, K, S, H].
            values: [1, K, S, H].
            scores: How scores are computed.
            name: The name of the result.

        Returns:
            [*leading, N * H].
        """
        return self._attended(self.by_head(heads, f"{name}/q"), keys, values, scores, name)

    def _attended(self, q: ir.Value, keys: ir.Value, values: ir.Value, scores: Scores, name: str) -> ir.Value:
        """q [1, N, T, H] -> [*leading, N * H]."""
        N, H = (int(dims(q)[axis]) for axis in (1, 3))
        attend = self._attention if scores.sinks is None else self._attention_with_sinks
        y = self.op.transpose(attend(q, keys, values, scores, name), [0, 2, 1, 3], f"{name}/by_token")
        return self.op.reshape(y, [*self.tokens.leading, N * H], f"{name}/concatenated")

    def _attention(
        self, q: ir.Value, keys: ir.Value, values: ir.Value, scores: Scores, name: str
    ) -> ir.Value:
        """q [1, N, T, H] -> [1, N, T, H]."""
        operands = [q, keys, values, self._mask(scores, int(dims(keys)[2]))]
        softcap: dict[str, Any] = {"softcap": scores.softcap} if scores.softcap else {}
        return self.op.node("Attention", operands, dims(q), name=name, scale=scores.scale, **softcap)

    def _attention_with_sinks(
        self, q: ir.Value, keys: ir.Value, values: ir.Value, scores: Scores, name: str
    ) -> ir.Value:
        """q [1, N, T, H] -> [1, N, T, H], by operators that any attention consists of."""
        op, N = self.op, int(dims(q)[1])
        _, K, S, H = map(int, dims(keys))
        assert scores.sinks is not None
        scaled = op.node("Mul", [q, op.constant(scores.scale, "scale", np.float32)], dims(q))
        grouped = op.reshape(scaled, [1, K, "rows", H])  # the heads that share keys, one below the other
        columns = op.transpose(keys, [0, 1, 3, 2], f"{name}/keys")
        y = op.node("MatMul", [grouped, columns], [1, K, "rows", S], name=f"{name}/scores")
        y = op.reshape(y, [1, N, "T", S])
        if scores.softcap:
            cap = op.constant(scores.softcap, "softcap", np.float32)
            bounded = op.node("Tanh", [op.node("Div", [y, cap], dims(y))], dims(y))
            y = op.node("Mul", [bounded, cap], dims(y), name=f"{name}/capped")
        mask = self._mask(scores, S)
        if mask.dtype == BOOL:
            hidden = op.constant(-np.inf, "hidden", np.float32)
            y = op.node("Where", [mask, y, hidden], dims(y), FLOAT)
        else:
            y = op.node("Add", [y, mask], dims(y))
        y = op.node("Concat", [y, self._sink_logits(scores.sinks, N)], [1, N, "T", "keys"], axis=-1)
        y = op.node("Softmax", [y], dims(y), name=f"{name}/weights", axis=-1)
        bounds = [op.constant([bound], "bound") for bound in (0, S, -1)]
        y = op.node("Slice", [y, *bounds], [1, N, "T", S])
        y = op.reshape(y, [1, K, "rows", S])
        y = op.node("MatMul", [y, values], [1, K, "rows", H])
        return op.reshape(y, dims(q), name)

    def _sink_logits(self, sinks: ir.Value, N: int) -> ir.Value:
        """The sinks of each token, [1, N, T, 1]."""

        def make(name: str) -> ir.Value:
            by_head = self.op.reshape(sinks, [1, N, 1, 1])
            first, last = self.op.constant([1, N], "heads"), self.op.constant([1], "one")
            shape = self.op.node("Concat", [first, self.tokens.count, last], [4], axis=0)
            return self.op.node("Expand", [by_head, shape], [1, N, "T", 1], name=name)

        return self._shared_value(f"{sinks.name}/by_token", make)

    def hide_later(self, mask: ir.Value) -> ir.Value:
        """Build a mask that also hides the keys after the position of each query.

        Args:
            mask: float32 [1, 1 or N, 1 or T, S].

        Returns:
            float32 [1, 1 or N, T, S].
        """
        _, heads, _, S = dims(mask)
        visible = self._shared_value(
            "visible", lambda name: self._visible(int(S), self.tokens.position, 0, name)
        )
        hidden = self.op.constant(-np.inf, "hidden", np.float32)
        return self.op.node(
            "Where", [visible, mask, hidden], [1, heads, "T", S], FLOAT, f"{mask.name}/causal"
        )

    def _mask(self, scores: Scores, S: int) -> ir.Value:
        """The mask of all keys in the cache: bool [T, S], or float32 [1, 1 or N, T, S]."""
        if scores.mask is not None:
            if scores.slopes is None:
                return scores.mask
            bias = self.alibi(scores.slopes, self.op.constant(np.arange(S), "keys"), scores.row)
            return self.op.node("Add", [bias, scores.mask], dims(bias))
        visible = self._shared_by_row(
            f"visible/{scores.window}" if scores.window else "visible",
            scores.row,
            lambda name: self._visible(S, scores.row, scores.window, name),
        )
        if scores.slopes is None:
            return visible
        bias = self.alibi(scores.slopes, self.op.constant(np.arange(S), "keys"), scores.row)
        hidden = self.op.constant(-np.inf, "hidden", np.float32)
        return self._shared_value(
            f"{bias.name}/{visible.name}",
            lambda name: self.op.node("Where", [visible, bias, hidden], dims(bias), FLOAT, name),
        )

    def alibi(self, slopes: ir.Value, keys: ir.Value, row: ir.Value) -> ir.Value:
        """Build ALiBi's bias: slopes times the distance from query to key.

        Args:
            slopes: [N].
            keys: Rows of the keys, int64.
            row: The ONNX input with the row of the first query.

        Returns:
            float32 [1, N, T, keys].
        """

        def distances(name: str) -> ir.Value:
            queries = self._queries(row)
            difference = self.op.node("Sub", [keys, queries], ["T", *dims(keys)])
            return self.op.node("Cast", [difference], dims(difference), FLOAT, name, to=int(FLOAT))

        (N,) = dims(slopes)
        distance = self._shared_by_row(f"distances/{keys.name}", row, distances)
        factors = self.op.reshape(slopes, [1, N, 1, 1])
        return self._shared_by_row(
            f"{slopes.name}/alibi",
            row,
            lambda name: self.op.node("Mul", [factors, distance], [1, N, *dims(distance)], FLOAT, name),
        )

    def _visible(self, S: int, row: ir.Value, window: int, name: str) -> ir.Value:
        """The mask, bool [T, S]: query t sees the keys 0 to its own row, of these the last `window`."""
        keys = self.op.constant(np.arange(S), "keys")
        queries = self._queries(row)
        shape: list[Dim] = ["T", S]
        causal = self.op.node("LessOrEqual", [keys, queries], shape, BOOL, name if not window else "causal")
        if not window:
            return causal
        first = self.op.node("Sub", [queries, self.op.constant(window, "window")], dims(queries))
        near = self.op.node("Greater", [keys, first], shape, BOOL)
        return self.op.node("And", [causal, near], shape, BOOL, name)

    def _position_ids(self, name: str) -> ir.Value:
        """The position of each token, int64 [1, T]."""
        return self.op.reshape(self.tokens.positions, [1, "T"], name)

    def _queries(self, row: ir.Value) -> ir.Value:
        """The rows of the queries in a cache, int64 [T, 1]."""

        def make(name: str) -> ir.Value:
            rows = self.tokens.positions
            if row is not self.tokens.position:
                rows = self.op.node("Add", [self.tokens.steps, row], ["T"], name="window_rows")
            return self.op.reshape(rows, ["T", 1], name)

        return self._shared_by_row("queries", row, make)

    def _shared_by_row(self, name: str, row: ir.Value, make: Callable[[str], ir.Value]) -> ir.Value:
        """`_shared_value` for all layers that have the first token in the same row."""
        is_window = row is not self.tokens.position
        return self._shared_value(f"{name}/window" if is_window else name, make)

    def _shared_value(self, name: str, make: Callable[[str], ir.Value]) -> ir.Value:
        """The value of a name that all layers share; `make(name)` builds it at the first call."""
        if name not in self._shared:
            self._shared[name] = make(name)
        return self._shared[name]
