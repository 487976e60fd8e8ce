"""torch.fx for TICO: graphs without unsupported operands, and fast through TICO's many passes.

TICO makes some 180 passes over a graph, most of which change nothing. Each ends with `GraphModule.recompile`,
which generates Python code for the whole graph and compiles it, and with `Graph.eliminate_dead_code`. The
code is read after one or two passes only. On one machine, compiling on demand took the export of
TinyLlama-1.1B from 14.4 s to 6.4 s. Skipping needless dead code elimination took it to 5.6 s. The result is
the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule

CAT = torch.ops.aten.cat.default

_recompile = GraphModule.recompile
_eliminate_dead_code = Graph.eliminate_dead_code


@contextlib.contextmanager
def quick_passes() -> Iterator[None]:
    """Compile graph modules when their code is read, not whenever they change.

    Modules that are created inside keep this behaviour afterwards. This does nothing if `recompile` of this
    version of torch sets other attributes than `_CODE`.

    Yields:
        Nothing.
    """
    if not _is_known():
        yield
        return
    before = GraphModule.recompile, Graph.eliminate_dead_code
    GraphModule.recompile, Graph.eliminate_dead_code = _recompile_later, _eliminate_dead_code_if_any  # type: ignore
    try:
        yield
    finally:
        GraphModule.recompile, Graph.eliminate_dead_code = before  # type: ignore[method-assign]


class _OnDemand:
    """An attribute of a graph module's class that compiles the module when it is read."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: GraphModule | None, owner: type) -> Any:
        if module is None:
            return self
        _recompile(module)
        return getattr(module, self.name)

    def __call__(self, module: GraphModule, *args: Any, **kwargs: Any) -> Any:
        """`type(module).forward(module, ...)`."""
        return getattr(module, self.name)(*args, **kwargs)


# What `recompile` sets. `forward` is an attribute of the class, of which the module is the only instance.
_CODE = {name: _OnDemand(name) for name in ("forward", "_code", "_lineno_map", "_prologue_start")}


def _recompile_later(module: GraphModule) -> None:
    """`recompile`, later."""
    pytree = getattr(module.graph._codegen, "pytree_info", None)
    if pytree is not None:
        module._in_spec, module._out_spec = pytree.in_spec, pytree.out_spec
    for name, on_demand in _CODE.items():
        vars(module).pop(name, None)
        setattr(type(module), name, on_demand)


def _eliminate_dead_code_if_any(graph: Graph, *args: Any, **kwargs: Any) -> bool:
    """`eliminate_dead_code`, only if a node has no users: it first checks all nodes for side effects."""
    if any(not node.users and node.op not in ("placeholder", "output") for node in graph.nodes):
        return _eliminate_dead_code(graph, *args, **kwargs)
    if graph.find_nodes(op="get_attr"):  # it may be a subgraph with dead code
        return _eliminate_dead_code(graph, *args, **kwargs)
    return False


def _is_known() -> bool:
    """Whether `recompile` of this version of torch sets the attributes of `_CODE` and no others."""
    attributes: set[str] = set()

    class Watched(GraphModule):
        def __setattr__(self, name: str, value: Any) -> None:
            attributes.add(name)
            super().__setattr__(name, value)

    module = Watched(torch.nn.Module(), Graph())
    _recompile(module)
    attributes.clear()
    before = dict(vars(type(module)))
    _recompile(module)
    attributes.update(name for name, value in vars(type(module)).items() if before.get(name) is not value)
    return attributes == {*_CODE, "__call__"}


def drop_empty(graph: Graph) -> None:
    """Remove empty operands from every `cat`: Circle has no tensors without elements.

    Partial rotary embeddings, as in Phi-3, concatenate the unrotated rest of each head even if it is empty.

    Args:
        graph: The graph; changed in place.
    """
    changed = False
    for node in graph.find_nodes(op="call_function", target=CAT):
        parts, *axis = node.args
        full = [part for part in parts if part.meta["val"].numel()]
        if 0 < len(full) < len(parts):
            node.args = (full, *axis)
            changed = True
    if changed:
        graph.eliminate_dead_code()


def express_less_than(graph: Graph) -> None:
    """Express x < number, which TICO lacks, as not (x >= number). Falcon's mask for ALiBi has it.

    Args:
        graph: The graph; changed in place.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.lt.Scalar):
        with graph.inserting_before(node):
            at_least = graph.call_function(torch.ops.aten.ge.Scalar, node.args)
            less = graph.call_function(torch.ops.aten.logical_not.default, (at_least,))
        at_least.meta, less.meta = dict(node.meta), dict(node.meta)
        node.replace_all_uses_with(less)
        graph.erase_node(node)


def express_expm1(graph: Graph) -> None:
    """Express exp(x) - 1, one operator that TICO lacks, by two. Apertus' activation (xIELU) has it.

    Near 0 the result is off by as much as the rounding of 1.

    Args:
        graph: The graph; changed in place.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.expm1.default):
        with graph.inserting_before(node):
            power = graph.call_function(torch.ops.aten.exp.default, node.args)
            less_one = graph.call_function(torch.ops.aten.sub.Tensor, (power, 1.0))
        power.meta, less_one.meta = dict(node.meta), dict(node.meta)
        node.replace_all_uses_with(less_one)
        graph.erase_node(node)


def express_floor(graph: Graph) -> None:
    """Express floor(x), which TICO lacks, by an integer: n = integer(x) is rounded towards 0, n - (n > x).

    Ministral 3 scales its queries by the floor of a position divided by a length.

    Args:
        graph: The graph; changed in place.
    """

    def node_of(target: Any, *operands: Any, dtype: torch.dtype, cast: bool = False) -> torch.fx.Node:
        node = graph.call_function(target, operands, {"dtype": dtype} if cast else {})
        node.meta = {"val": floor.meta["val"].to(dtype)}
        return node

    to, above, minus = torch.ops.aten._to_copy.default, torch.ops.aten.gt.Tensor, torch.ops.aten.sub.Tensor
    for floor in graph.find_nodes(op="call_function", target=torch.ops.aten.floor.default):
        x, dtype = floor.args[0], floor.meta["val"].dtype
        with graph.inserting_before(floor):
            integer = node_of(to, x, dtype=torch.int32, cast=True)
            rounded = node_of(to, integer, dtype=dtype, cast=True)
            is_above = node_of(above, rounded, x, dtype=torch.bool)
            one_if_above = node_of(to, is_above, dtype=dtype, cast=True)
            result = node_of(minus, rounded, one_if_above, dtype=dtype)
        floor.replace_all_uses_with(result)
        graph.erase_node(floor)


def divide_as_floats(graph: Graph) -> None:
    """Convert integers to floats before they are divided: TICO divides integers as integers.

    Args:
        graph: The graph; changed in place.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.div.Tensor):
        dtype = node.meta["val"].dtype
        for operand in node.all_input_nodes:
            value = operand.meta["val"]
            if not value.dtype.is_floating_point:
                with graph.inserting_before(node):
                    cast = graph.call_function(torch.ops.aten._to_copy.default, (operand,), {"dtype": dtype})
                cast.meta = {"val": value.to(dtype)}
                node.replace_input_with(operand, cast)


def weigh_norms(graph: Graph) -> None:
    """Give RMSNorm without a weight, as in DiffLlama, a weight of ones: TICO wants one.

    Args:
        graph: The graph; changed in place.
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.rms_norm.default):
        x, shape, weight, eps = (*node.args, None, None)[:4]
        if weight is None:
            value = node.meta["val"]
            with graph.inserting_before(node):
                ones = graph.call_function(torch.ops.aten.full.default, (shape, 1.0), {"dtype": value.dtype})
            ones.meta = {"val": value.new_ones(shape)}
            node.args = (x, shape, ones, eps)


def express_variance(graph: Graph) -> None:
    """Express variance and standard deviation, which TICO lacks, as a mean of squares.

    Gemma 3n's sparse activations have the second.

    Args:
        graph: The graph; changed in place.
    """
    mean, scale, aten = torch.ops.aten.mean.dim, torch.ops.aten.mul.Tensor, torch.ops.aten
    roots = {aten.var.correction: False, aten.var.dim: False, aten.std.correction: True, aten.std.dim: True}
    for op, takes_root in roots.items():
        for old in graph.find_nodes(op="call_function", target=op):
            x, axes, correction, keeps = _spread_options(old)
            whole, result = x.meta["val"], old.meta["val"]
            count = math.prod(whole.shape[axis] for axis in axes)
            steps: list[tuple[Any, tuple[Any, ...]]] = [(mean, (axes, keeps))]
            steps += [(scale, (count / (count - correction),))] if correction else []
            steps += [(aten.sqrt.default, ())] if takes_root else []
            with graph.inserting_before(old):
                centre = graph.call_function(mean, (x, axes, True))
                distance = graph.call_function(aten.sub.Tensor, (x, centre))
                node = graph.call_function(scale, (distance, distance))
                centre.meta = {"val": whole.mean(axes, keepdim=True)}
                distance.meta, node.meta = {"val": whole}, {"val": whole}
                for target, operands in steps:
                    node = graph.call_function(target, (node, *operands))
                    node.meta = {"val": result}
            old.replace_all_uses_with(node)
            graph.erase_node(old)


def _spread_options(node: torch.fx.Node) -> tuple[torch.fx.Node, list[int], float, bool]:
    """x, axes, what is subtracted from the count, and keepdim of a variance or standard deviation."""
    (x,), positional = node.all_input_nodes, node.args[1:]
    options: dict[str, Any] = dict(zip(("dim", "unbiased", "keepdim"), positional, strict=False)) | dict(
        node.kwargs
    )
    correction = options.get("correction", options.get("unbiased"))
    axes = options.get("dim")
    if axes is None or axes == []:
        axes = list(range(x.meta["val"].dim()))
    return x, list(axes), 1 if correction is None else correction, bool(options.get("keepdim"))


def prepare_for_tico(graph: Graph) -> None:
    """Express what TICO lacks or computes otherwise.

    Args:
        graph: The graph; changed in place.
    """
    drop_empty(graph)
    express_less_than(graph)
    express_expm1(graph)
    divide_as_floats(graph)
    express_floor(graph)
    weigh_norms(graph)
    express_variance(graph)
