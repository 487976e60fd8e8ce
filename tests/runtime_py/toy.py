"""A language model small enough to know by heart, as a TFLite file written by hand.

With token t_i at position i, and tables E, F [V, K*H] and weights w [S]:

    key_i = E[t_i] * w[i]     value_i = F[t_i]     logits_i = U @ sum(key_j * value_j for j <= i)

So every position matters, keys and values are both needed, and the rows after the position are not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import ai_edge_litert.schema_py_generated as tfl
import flatbuffers
import numpy as np

VOCAB, HEADS, HEAD = 11, 2, 3
WIDTH = HEADS * HEAD

_TYPES = {"float32": 0, "int32": 2, "int64": 4, "bool": 6}


class _Graph:
    """A subgraph that is being built. Tensors are identified by their number."""

    def __init__(self, file: _File) -> None:
        self.file = file
        self.table = tfl.SubGraphT()
        self.table.tensors, self.table.operators = [], []
        self.table.inputs, self.table.outputs = [], []

    def tensor(self, shape: Sequence[int], dtype: str = "float32", data: np.ndarray | None = None) -> int:
        tensor = tfl.TensorT()
        tensor.name = f"t{len(self.table.tensors)}"
        tensor.shape = list(shape)
        tensor.type = _TYPES[dtype]
        tensor.buffer = self.file.buffer(data.tobytes()) if data is not None else 0
        self.table.tensors.append(tensor)
        return len(self.table.tensors) - 1

    def const(self, values: Any, dtype: str = "float32") -> int:
        array = np.asarray(values, dtype)
        return self.tensor(array.shape, dtype, array)

    def op(
        self,
        name: str,
        inputs: list[int],
        shape: Sequence[int],
        dtype: str = "float32",
        options: str = "",
        **fields: Any,
    ) -> int:
        out = self.tensor(shape, dtype)
        op = tfl.OperatorT()
        op.opcodeIndex = self.file.code(name)
        op.inputs, op.outputs = inputs, [out]
        if options:
            op.builtinOptions = getattr(tfl, options + "T")()
            op.builtinOptionsType = getattr(tfl.BuiltinOptions, options)
            for key, value in fields.items():
                setattr(op.builtinOptions, key, value)
        self.table.operators.append(op)
        return out


_Ends = dict[str, tuple[int, dict[str, Any]]]
"""Public name -> the tensor's number and its entry in the contract."""


class _File:
    def __init__(self) -> None:
        self.table = tfl.ModelT()
        self.table.version = 3
        self.table.buffers = [tfl.BufferT()]
        self.table.subgraphs, self.table.operatorCodes = [], []
        self.table.signatureDefs, self.table.metadata = [], []
        self.contract: dict[str, Any] = {"version": 1, "signatures": {}}

    def buffer(self, data: bytes) -> int:
        buffer = tfl.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.table.buffers.append(buffer)
        return len(self.table.buffers) - 1

    def code(self, name: str) -> int:
        number = getattr(tfl.BuiltinOperator, name)
        for index, known in enumerate(self.table.operatorCodes):
            if known.builtinCode == number:
                return index
        code = tfl.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, 127), 1
        self.table.operatorCodes.append(code)
        return len(self.table.operatorCodes) - 1

    def signature(self, key: str, graph: _Graph, inputs: _Ends, outputs: _Ends) -> None:
        definition = tfl.SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = key, len(self.table.subgraphs)
        definition.inputs, definition.outputs = [], []
        signature: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
        names = {number: name for name, number in _TYPES.items()}
        for end, entries, numbers in (
            ("inputs", inputs, graph.table.inputs),
            ("outputs", outputs, graph.table.outputs),
        ):
            for name, (number, role) in entries.items():
                mapped = tfl.TensorMapT()
                mapped.name, mapped.tensorIndex = name, number
                getattr(definition, end).append(mapped)
                numbers.append(number)
                tensor = graph.table.tensors[number]
                signature[end].append(
                    {"name": name, **role, "dtype": names[tensor.type], "shape": list(tensor.shape)}
                )
        self.table.signatureDefs.append(definition)
        self.table.subgraphs.append(graph.table)
        self.contract["signatures"][key] = signature

    def pack(self, with_contract: bool = True) -> bytes:
        if with_contract:
            metadata = tfl.MetadataT()
            metadata.name = "o2o.contract"
            metadata.buffer = self.buffer(json.dumps(self.contract).encode())
            self.table.metadata.append(metadata)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.table.Pack(builder), b"TFL3")
        return bytes(builder.Output())


_GATHER: dict[str, Any] = {"options": "GatherOptions", "axis": 0}


def _cast(old: str, new: str) -> dict[str, Any]:
    return {"options": "CastOptions", "inDataType": _TYPES[old], "outDataType": _TYPES[new]}


class Toy:
    """A small model, its TFLite file, and its expected results.

    `prefill_length` is T of `prefill`, which returns its rows (0 for none). `cached_lengths` are T of
    `prefill_T`, which write into the caches at any position. `capacity` is S. Layouts are BNTH or BTNH.
    `ids_dtype` is the dtype of tokens and positions. With `same_names`, cache outputs have the names of the
    inputs. `ai_edge` uses AI Edge's names, with a position for each token and no logits from prefills.
    `damage` is the value of every number of the last token, such as NaN: so are the logits after it.
    """

    def __init__(
        self,
        *,
        prefill_length: int = 5,
        cached_lengths: Sequence[int] = (),
        capacity: int = 8,
        prefill_layout: str = "BNTH",
        cache_layout: str = "BTNH",
        ids_dtype: str = "int32",
        vocab: int = VOCAB,
        same_names: bool = False,
        ai_edge: bool = False,
        seed: int = 0,
        damage: float | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.length, self.capacity, self.vocab = prefill_length, capacity, vocab
        self.layouts = {"prefill": prefill_layout, "cache": cache_layout}
        self.ids_dtype = ids_dtype
        self.given = "past" if same_names else "present"
        self.ai_edge = ai_edge
        self.keys = rng.standard_normal((vocab, WIDTH), np.float32)
        self.values = rng.standard_normal((vocab, WIDTH), np.float32)
        if damage is not None:
            self.values[-1] = damage
        self.weights = rng.uniform(0.5, 1.5, max(capacity, prefill_length)).astype(np.float32)
        self.lm_head = rng.standard_normal((vocab, WIDTH), np.float32)
        file = _File()
        for length in cached_lengths:  # in any order
            self._cached(file, f"prefill_{length}", length)
        if prefill_length:
            self._prefill(file)
        self._cached(file, "decode", 1)
        self.contract = file.contract
        self.file = file.pack()
        file.table.metadata = []
        self.file_without_contract = file.pack(with_contract=False)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """What follows `tokens` [P]: [V]."""
        ids = np.asarray(tokens)
        keys = self.keys[ids] * self.weights[: len(ids), None]
        return self.lm_head @ (keys * self.values[ids]).sum(0)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` ids that follow `prompt`."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids).argmax()))
        return ids[len(prompt) :]

    def _shape(self, layout: str, tokens: int) -> list[int]:
        sizes = {"B": 1, "N": HEADS, "T": tokens, "H": HEAD}
        return [sizes[axis] for axis in layout]

    def _laid_out(self, graph: _Graph, flat: int, layout: str, tokens: int) -> int:
        """[1, T, K*H] in the layout asked for."""
        split = self._shape("BTNH", tokens)
        out = graph.op("RESHAPE", [flat, graph.const(split, "int32")], split, options="ReshapeOptions")
        if layout == "BTNH":
            return out
        order = graph.const([0, 2, 1, 3], "int32")
        return graph.op("TRANSPOSE", [out, order], self._shape(layout, tokens), options="TransposeOptions")

    def _flat(self, graph: _Graph, x: int, layout: str, tokens: int) -> int:
        """The inverse: keys or values in this layout as [1, T, K*H]."""
        if layout != "BTNH":
            order = graph.const([0, 2, 1, 3], "int32")
            split = self._shape("BTNH", tokens)
            x = graph.op("TRANSPOSE", [x, order], split, options="TransposeOptions")
        flat = [1, tokens, WIDTH]
        return graph.op("RESHAPE", [x, graph.const(flat, "int32")], flat, options="ReshapeOptions")

    def _prefill(self, file: _File) -> None:
        graph, n, layout = _Graph(file), self.length, self.layouts["prefill"]
        tokens = graph.tensor([1, n], self.ids_dtype)
        flat = [1, n, WIDTH]
        key = graph.op("GATHER", [graph.const(self.keys), tokens], flat, **_GATHER)
        key = graph.op("MUL", [key, graph.const(self.weights[None, :n, None])], flat, options="MulOptions")
        value = graph.op("GATHER", [graph.const(self.values), tokens], flat, **_GATHER)
        both = graph.op("MUL", [key, value], flat, options="MulOptions")
        lower = graph.const(np.tril(np.ones((1, n, n))))
        summed = graph.op("BATCH_MATMUL", [lower, both], flat, options="BatchMatMulOptions")
        logits = graph.op(
            "FULLY_CONNECTED",
            [summed, graph.const(self.lm_head), -1],
            [1, n, self.vocab],
            options="FullyConnectedOptions",
            keepNumDims=True,
        )
        rows = {
            f"present_{kind}_0": (
                self._laid_out(graph, flat_rows, layout, n),
                {"role": kind, "layer": 0, "layout": layout},
            )
            for kind, flat_rows in (("key", key), ("value", value))
        }
        file.signature(
            "prefill",
            graph,
            {"input_ids": (tokens, {"role": "tokens"})},
            {"logits": (logits, {"role": "logits"}), **rows},
        )

    def _cached(self, file: _File, name: str, n: int) -> None:
        """n tokens at any position, on the caches."""
        graph, s, layout = _Graph(file), self.capacity, self.layouts["cache"]
        tokens = graph.tensor([1, n], self.ids_dtype)
        position = graph.tensor([n if self.ai_edge else 1], self.ids_dtype)
        cache_shape, flat = self._shape(layout, s), [1, n, WIDTH]
        past = {kind: graph.tensor(cache_shape) for kind in ("key", "value")}
        where = position
        if self.ids_dtype == "int64":
            where = graph.op("CAST", [position], [1], "int32", **_cast("int64", "int32"))
        if self.ai_edge:
            bounds = graph.const([0], "int32"), graph.const([1], "int32")
            where = graph.op("SLICE", [position, *bounds], [1], "int32", options="SliceOptions")
        positions = graph.op(
            "ADD", [where, graph.const(np.arange(n), "int32")], [n], "int32", options="AddOptions"
        )
        zero = graph.const([0], "int32")
        start = [where if axis == "T" else zero for axis in layout]
        start_at = graph.op("CONCATENATION", start, [4], "int32", options="ConcatenationOptions", axis=0)
        updated, seen_by_all = {}, []
        for kind, table in (("key", self.keys), ("value", self.values)):
            rows = graph.op("GATHER", [graph.const(table), tokens], flat, **_GATHER)
            if kind == "key":
                column = graph.const(self.weights[:, None])
                weight = graph.op("GATHER", [column, positions], [n, 1], **_GATHER)
                rows = graph.op("MUL", [rows, weight], flat, options="MulOptions")
            rows = self._laid_out(graph, rows, layout, n)
            updated[kind] = graph.op("DYNAMIC_UPDATE_SLICE", [past[kind], rows, start_at], cache_shape)
            seen_by_all.append(self._flat(graph, updated[kind], layout, s))
        both = graph.op("MUL", seen_by_all, [1, s, WIDTH], options="MulOptions")
        column = graph.op(
            "RESHAPE", [positions, graph.const([n, 1], "int32")], [n, 1], "int32", options="ReshapeOptions"
        )
        slots = graph.const(np.arange(s)[None], "int32")
        seen = graph.op("LESS_EQUAL", [slots, column], [n, s], "bool", options="LessEqualOptions")
        mask = graph.op("CAST", [seen], [n, s], **_cast("bool", "float32"))
        mask = graph.op(
            "RESHAPE", [mask, graph.const([1, n, s], "int32")], [1, n, s], options="ReshapeOptions"
        )
        summed = graph.op("BATCH_MATMUL", [mask, both], flat, options="BatchMatMulOptions")
        logits = graph.op(
            "FULLY_CONNECTED",
            [summed, graph.const(self.lm_head), -1],
            [1, n, self.vocab],
            options="FullyConnectedOptions",
            keepNumDims=True,
        )
        spread = {"layer": 0, "layout": layout}
        given = {kind: f"{self.given}_{kind}_0" for kind in past}
        taken = {kind: f"past_{kind}_0" for kind in past}
        called = ["input_ids", "cache_position"]
        if self.ai_edge:
            given = taken = {kind: f"kv_cache_{kind[0]}_0" for kind in past}
            called = ["tokens", "input_pos"]
        outputs: _Ends = {given[kind]: (updated[kind], {"role": kind, **spread}) for kind in past}
        if n == 1 or not self.ai_edge:
            outputs = {"logits": (logits, {"role": "logits"}), **outputs}
        file.signature(
            name,
            graph,
            {
                called[0]: (tokens, {"role": "tokens"}),
                called[1]: (position, {"role": "position"}),
                **{taken[kind]: (past[kind], {"role": f"{kind}_cache", **spread}) for kind in past},
            },
            outputs,
        )
