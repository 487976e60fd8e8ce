"""ONNX graphs that verify drafts: T tokens in one run, each with the bits that a decode step computes.

ONNX Runtime's attention adds up in another order for one token than for several. Here each attention operator
becomes T of them, one token each, with the operands of a decode step. Each one writes its row of the KV
caches, and the next one reads it. The other operators of most decoders compute each row as if it were alone.
MatMulNBits does so with some block sizes only (`runtime_py.engines.onnx.row_exact_blocks`).

    query of T tokens -> Split -> attention of token 0 -> present_0 -> attention of token 1 -> ... -> Concat

Every cache between two tokens is an output of the graph. All of them, and the past and present caches, are
bound to one buffer, so no row is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_PREFIX = "verify/"


def cache_after(present: str, token: int) -> str:
    """Return the name of a cache between two tokens.

    Args:
        present: The name of the output that holds the cache after the last token.
        token: The index of a token that is not the last.

    Returns:
        The name of the output that holds it after that token.
    """
    return f"{present}/after_{token}"


def make_draft_verifier(model: onnx.ModelProto, length: int) -> bytes:
    """Make the graph that reads T tokens as T decode steps do.

    Args:
        model: A graph of `o2o.lower.onnx`, for any number of tokens, also as ONNX Runtime optimized it. It is
            not changed. External data need not be loaded.
        length: T.

    Returns:
        The new model, with the external data of `model`.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    _Verifier(copy.graph, length).rewrite()
    return copy.SerializeToString()


class _Verifier:
    """The rewriting of one graph."""

    def __init__(self, graph: onnx.GraphProto, length: int) -> None:
        self._graph, self._length = graph, length
        self._nodes: list[onnx.NodeProto] = []
        self._names: set[str] = set()  # names of values that all layers share

    def rewrite(self) -> None:
        """Give each token its own attention operators."""
        for node in self._graph.node:
            if (node.domain, node.op_type) == ("com.microsoft", "GroupQueryAttention"):
                self._split_cached_attention(node)
            elif (node.domain, node.op_type) == ("", "Attention"):
                self._split_attention(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        del self._graph.value_info[:]

    def _split_attention(self, node: onnx.NodeProto) -> None:
        """Attention of queries [1, N, T, H] to caches in which all T rows are written."""
        axes = {0: -2, 3: -2}
        queries, masks = (self._by_token(node, index, axis) for index, axis in axes.items())
        results = []
        for token in range(self._length):
            operands = [*node.input]
            operands[0] = queries[token]
            if masks:
                operands[3] = masks[token]
            results.append(f"{_PREFIX}{node.output[0]}/{token}")
            self._copy(node, operands, [results[-1]])
        self._add("Concat", results, [node.output[0]], axis=2)

    def _split_cached_attention(self, node: onnx.NodeProto) -> None:
        """GroupQueryAttention: queries, keys and values [1, T, ...], positions [1, T], bias [1, N, T, S]."""
        axes = {0: 1, 1: 1, 2: 1, 9: 1, 10: 2}
        parts = {index: self._by_token(node, index, axis) for index, axis in axes.items()}
        caches, results = [*node.input[3:5]], []
        for token in range(self._length):
            operands = [*node.input]
            for index, part in parts.items():
                if part:
                    operands[index] = part[token]
            if parts[10]:
                operands[10] = self._without_last_keys(parts[10][token], self._length - 1 - token)
            operands[3:5] = caches
            operands[5:7] = (self._before_the_last(name, token) for name in operands[5:7])
            is_last = token == self._length - 1
            caches = [name if is_last else cache_after(name, token) for name in node.output[1:3]]
            results.append(f"{_PREFIX}{node.output[0]}/{token}")
            self._copy(node, operands, [results[-1], *caches])
            if not is_last:
                self._add_outputs(node.output[1:3], caches)
        self._add("Concat", results, [node.output[0]], axis=1)

    def _by_token(self, node: onnx.NodeProto, index: int, axis: int) -> list[str]:
        """The parts of an operand along its axis T; none for an operand that is absent."""
        if index >= len(node.input) or not node.input[index]:
            return []
        name = node.input[index]
        parts = [f"{_PREFIX}{name}/{token}" for token in range(self._length)]
        if parts[0] not in self._names:
            self._names.add(parts[0])
            self._add("Split", [name, self._constant("ones", [1] * self._length)], parts, axis=axis)
        return parts

    def _without_last_keys(self, bias: str, count: int) -> str:
        """A bias [1, N, 1, keys] of all keys but the last ones."""
        result = f"{bias}/keys"
        if count and result not in self._names:
            self._names.add(result)
            bounds = (self._constant(f"bound/{bound}", [bound]) for bound in (0, -count, 3))
            self._add("Slice", [bias, *bounds], [result])
        return result if count else bias

    def _before_the_last(self, name: str, token: int) -> str:
        """A number of rows after the last token, int32, as it is after an earlier one."""
        behind = self._length - 1 - token
        result = f"{_PREFIX}{name}/{token}"
        if behind and result not in self._names:
            self._names.add(result)
            self._add("Sub", [name, self._constant(f"behind/{behind}", behind, np.int32)], [result])
        return result if behind else name

    def _constant(self, name: str, numbers: Any, dtype: Any = np.int64) -> str:
        from onnx import numpy_helper

        name = f"{_PREFIX}{name}"
        if name not in self._names:
            self._names.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.array(numbers, dtype), name))
        return name

    def _add(self, op_type: str, operands: list[str], results: list[str], **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(op_type, operands, results, **attributes))

    def _copy(self, node: onnx.NodeProto, operands: list[str], results: list[str]) -> None:
        """Append an operator like `node` with other operands and results."""
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = results[0]
        copy.input[:], copy.output[:] = operands, results
        self._nodes.append(copy)

    def _add_outputs(self, names: list[str], new_names: list[str]) -> None:
        """Append outputs of the types of others."""
        for name, new_name in zip(names, new_names, strict=True):
            (value,) = (value for value in self._graph.output if value.name == name)
            self._graph.output.add().CopyFrom(value)
            self._graph.output[-1].name = new_name
