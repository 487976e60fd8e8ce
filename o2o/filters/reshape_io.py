"""`reshape.io.py`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.arguments import add_io, shape
from o2o.cli.text import counted
from o2o.contract import role_of
from o2o.errors import ModelError, UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.formats.tensors import is_quantized
from o2o.model import Model, dims_of, is_dynamic, shape_of
from o2o.operators.attention import Attention, is_attention, takes_as_cache
from o2o.rewriting.matchers import producer_of
from o2o.rewriting.rewire import insert_after_input, insert_before_output, io_values, replace_graph_output
from o2o.rewriting.selectors import entry_graphs

if TYPE_CHECKING:
    from o2o.check.interface import Expected, ExpectedSignature, Tensors


class ReshapeIo(Filter):
    """Reshape inputs or outputs, and adapt the graph.

        past_key_0 [1,16,30,4] -- ATTENTION   =>   past_key_0 [1,16,32,4] -- ATTENTION   (more rows)
        x [1,64] -- FULLY_CONNECTED           =>   x [64] -- RESHAPE [1,64] -- FULLY_CONNECTED
        ADD -- y [1,1,64]                     =>   ADD -- RESHAPE -- y [64]

    Every input (or output) of the old shape gets the new one, in the first graph and in all graphs with a
    signature. If the number of elements stays, a RESHAPE keeps the results. Only the capacity of a cache can
    change, and only if ATTENTION is its sole user: ATTENTION reads no row behind its position.
    Refused: any other change of size, and an old shape that no input (or output) has. A cache that is
    concatenated and masked needs fuse.attention.py first.
    """

    name = "reshape.io.py"
    purpose = "Inputs and outputs"
    input_formats = ALL_FORMATS
    usage_example = "reshape.io.py input --by_shape [1,16,30,4] [1,16,32,4] < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_io(parser)
        parser.add_argument(
            "--by_shape",
            nargs=2,
            action="append",
            required=True,
            metavar=("OLD", "NEW"),
            type=shape,
            help="such as [1,16,30,4]; repeatable",
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        graphs = entry_graphs(model, None)
        for old, new in args.by_shape:
            if old == new:
                raise UsageError(f"old and new shape are both {_text(old)}")
            changed = 0
            for graph in graphs:
                for value in dict.fromkeys(v for v in io_values(graph, args.io) if (dims_of(v) or ()) == old):
                    if is_dynamic(value):
                        raise ModelError(f"{value.name} has no fixed shape: {_text(old)} is an example")
                    if args.io == "input":
                        _reshape_input(model, graph, value, new)
                    else:
                        _reshape_output(model, graph, value, new)
                    changed += 1
            if not changed:
                shapes = {_text(dims_of(v) or ()) for graph in graphs for v in io_values(graph, args.io)}
                there = ", ".join(sorted(shapes))
                raise UsageError(f"no {args.io} has the shape {_text(old)}; there are {there}")
            self.log(f"reshaped {counted(changed, args.io)} {_text(old)} to {_text(new)}")
        for graph in graphs:
            _check_caches(graph)

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import signature_of, unchanged, with_inputs, with_outputs

        def reshaped(expected: ExpectedSignature) -> Tensors:
            source = signature_of(models, expected)
            values = source.inputs if args.io == "input" else source.outputs
            changed = dict(expected.inputs if args.io == "input" else expected.outputs)
            for name, value in values.items():
                shape = unchanged_shape = dims_of(value) or ()
                for old, new in args.by_shape:
                    shape = new if shape == old else shape
                if shape != unchanged_shape:
                    changed[name] = replace(changed[name], shape=tuple(map(int, shape)))
            return changed

        def updated_in_place(expected: ExpectedSignature) -> Tensors:
            """The outputs. One that is an input, updated in place by ATTENTION, has the input's shape."""
            source = signature_of(models, expected)
            shapes = reshaped(expected)
            written = {id(value): shapes[name] for name, value in source.inputs.items() if _written(value)}
            return {
                name: replace(tensor, shape=written[id(value)].shape)
                if id(value := source.outputs[name]) in written
                else tensor
                for name, tensor in expected.outputs.items()
            }

        if args.io == "output":
            return with_outputs(unchanged(models), reshaped)
        return with_inputs(with_outputs(unchanged(models), updated_in_place), reshaped)


def _reshape_input(model: Model, graph: ir.Graph, value: ir.Value, new: tuple[int, ...]) -> None:
    old = shape_of(value)
    if math.prod(old) == math.prod(new) and not _written(value):
        if not is_quantized(value) and not value.is_graph_output() and _is_reshaped_anyway(value):
            _set_shape(value, new)
            _forget_layout(value)
            return
        op, inner = insert_after_input(graph, value)
        _set_shape(value, new)
        _forget_layout(value)
        reshaped = op.reshape(value, old, name=f"{value.name}_reshaped")
        inner.replace_all_uses_with(reshaped)
        if value.is_graph_output():
            replace_graph_output(model, graph, value, reshaped)
        return
    for use in value.uses():
        _check_resizable(value, use.node, use.idx, new)
    _set_shape(value, new)


def _is_reshaped_anyway(value: ir.Value) -> bool:
    """Whether every user of `value` is a RESHAPE."""
    return all(use.idx == 0 and producer_of(use.node.outputs[0], "RESHAPE") for use in value.uses())


def _written(value: ir.Value) -> bool:
    """Whether ATTENTION updates `value` in place: a RESHAPE between them would break that."""
    return any(takes_as_cache(use.node, use.idx) for use in value.uses())


def _check_resizable(value: ir.Value, node: ir.Node, operand: int, new: tuple[int, ...]) -> None:
    """Raise ModelError unless `value` is a cache of `node` that can get the capacity of `new`."""
    old = shape_of(value)
    wanted = f"cannot resize {value.name} from {_text(old)} to {_text(new)}"
    if not takes_as_cache(node, operand):
        hint = "; run fuse.attention.py first" if node.op_type == "CONCATENATION" else ""
        raise ModelError(f"{wanted}: {node.op_type} {node.outputs[0].name} needs the old shape{hint}")
    attention = Attention.of(node)
    token_axis = 2 if attention.layout == "BNTH" else 1
    changed = [axis for axis in range(len(old)) if len(new) != len(old) or new[axis] != old[axis]]
    if changed != [token_axis]:
        raise ModelError(
            f"{wanted}: only axis {token_axis} of a {attention.layout} cache, its capacity, can change"
        )
    # TICO's adapter gives the mask the final capacity before the caches have it.
    if attention.mask is not None and shape_of(attention.mask)[-1] not in (1, new[token_axis]):
        rows = shape_of(attention.mask)[-1]
        raise ModelError(f"{wanted}: ATTENTION has a mask {attention.mask.name} for {rows} rows")
    if new[token_axis] < attention.T:
        raise ModelError(f"{wanted}: ATTENTION writes {attention.T} rows at a time")


def _reshape_output(model: Model, graph: ir.Graph, value: ir.Value, new: tuple[int, ...]) -> None:
    if math.prod(shape_of(value)) != math.prod(new):
        raise ModelError(f"cannot reshape the output {value.name} {list(shape_of(value))} to {_text(new)}")
    _forget_layout(
        insert_before_output(model, graph, value, lambda op, x: op.reshape(x, new, name="reshaped"))
    )


def _check_caches(graph: ir.Graph) -> None:
    for node in graph:
        if is_attention(node):
            attention = Attention.of(node)
            k, v = attention.k_cache, attention.v_cache
            if k is not None and v is not None and shape_of(k) != shape_of(v):
                raise ModelError(
                    f"{k.name} would be {_text(shape_of(k))} and {v.name} {_text(shape_of(v))}: reshape both"
                )
            if k is not None:
                _ = attention.layout  # raises if neither contract nor shape determine it


def _forget_layout(value: ir.Value) -> None:
    """Drop the layout of a reshaped cache: it described the old axes."""
    role = role_of(value)
    if role is not None and role.layout is not None:
        value.meta["role"] = replace(role, layout=None)


def _set_shape(value: ir.Value, shape: Sequence[int]) -> None:
    value.shape = ir.Shape(shape)
    value.meta.get("fields", {}).pop("shapeSignature", None)  # it described the old shape


def _text(shape: Sequence[int | str]) -> str:
    return f"[{','.join(map(str, shape))}]"


main = ReshapeIo.main
