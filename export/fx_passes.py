"""torch.fx for TICO: graphs without what it stumbles over, and quick through its many passes.

TICO makes some 180 passes over a graph, most of which change nothing, and ends each with
`GraphModule.recompile`, which spells the whole graph as Python and compiles that, and with
`Graph.eliminate_dead_code`. Nobody runs that Python: of some 200 recompilations one or two are looked at.
Putting them off took TinyLlama-1.1B's export from 14.4 s to 6.4 s, looking for dead code only where there is
some to 5.6 s, on one machine.
What comes out is the same, byte for byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import Graph, GraphModule

CAT = torch.ops.aten.cat.default

_recompile = GraphModule.recompile
_eliminate_dead_code = Graph.eliminate_dead_code


@contextlib.contextmanager
def quick_passes() -> Iterator[None]:
    """In the meantime, graph modules are compiled when their code is asked for, not whenever they change.

    The code is then that of the graph as it stands. Modules made in the meantime stay as they are afterwards.
    Does nothing for a torch whose `recompile` makes other things than are known here.
    """
    if not _is_known():
        yield
        return
    before = GraphModule.recompile, Graph.eliminate_dead_code
    GraphModule.recompile, Graph.eliminate_dead_code = _put_off, _eliminate_dead_code_if_any  # type: ignore
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


# What `recompile` makes: the first is an attribute of the module's class, of which it is the only instance.
_CODE = {name: _OnDemand(name) for name in ("forward", "_code", "_lineno_map", "_prologue_start")}


def _put_off(module: GraphModule) -> None:
    """`recompile`, later."""
    ends = getattr(module.graph._codegen, "pytree_info", None)
    if ends is not None:
        module._in_spec, module._out_spec = ends.in_spec, ends.out_spec
    for name, on_demand in _CODE.items():
        vars(module).pop(name, None)
        setattr(type(module), name, on_demand)


def _eliminate_dead_code_if_any(graph: Graph, *args: Any, **kwargs: Any) -> bool:
    """`eliminate_dead_code`, which asks every node whether it has side effects before it counts its users."""
    if any(not node.users and node.op not in ("placeholder", "output") for node in graph.nodes):
        return _eliminate_dead_code(graph, *args, **kwargs)
    if graph.find_nodes(op="get_attr"):  # it may be a graph, with dead code inside
        return _eliminate_dead_code(graph, *args, **kwargs)
    return False


def _is_known() -> bool:
    """Whether this torch's `recompile` makes what `_CODE` names and nothing else."""
    made: set[str] = set()

    class Watched(GraphModule):
        def __setattr__(self, name: str, value: Any) -> None:
            made.add(name)
            super().__setattr__(name, value)

    module = Watched(torch.nn.Module(), Graph())
    _recompile(module)
    made.clear()
    before = dict(vars(type(module)))
    _recompile(module)
    made.update(name for name, value in vars(type(module)).items() if before.get(name) is not value)
    return made == {*_CODE, "__call__"}


def drop_empty(graph: Graph) -> None:
    """Let no `cat` of `graph` take tensors without elements, which Circle has none of.

    Rotary embeddings of a share of each head, as Phi-3's, make one of the rest, also where there is no rest.
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
