from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, Node, symbolic_trace
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import tree_structure

from export import fx_passes
from export.fx_passes import (
    divide_as_floats,
    express_expm1,
    express_floor,
    express_less_than,
    express_variance,
    quick_passes,
    weigh_norms,
)

ONE = torch.ones(1)


class Half(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0.5


def half() -> GraphModule:
    return symbolic_trace(Half())


def product(module: GraphModule) -> Node:
    (node,) = (node for node in module.graph.nodes if node.op == "call_function")
    return node


def multiply_by(factor: float, module: GraphModule) -> None:
    x, _ = product(module).args
    product(module).args = (x, factor)
    module.recompile()


def add_dead_code(module: GraphModule) -> None:
    """Two nodes, one of which uses the other."""
    last = product(module)
    for _ in range(2):
        with module.graph.inserting_after(last):
            last = module.graph.call_function(torch.add, (last, 1))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[GraphModule]:
    """Which modules were compiled, each time it was done."""
    modules: list[GraphModule] = []
    recompile = fx_passes._recompile

    def recorded_recompile(module: GraphModule) -> Any:
        modules.append(module)
        return recompile(module)

    monkeypatch.setattr(fx_passes, "_is_known", lambda: True)  # it compiles one, too
    monkeypatch.setattr(fx_passes, "_recompile", recorded_recompile)
    return modules


def test_this_torch_is_known() -> None:
    assert fx_passes._is_known()
    with quick_passes():
        assert fx_passes._is_known()


def test_modules_are_compiled_when_they_run(compiled: list[GraphModule]) -> None:
    with quick_passes():
        module = half()
        multiply_by(3, module)
        multiply_by(4, module)
        assert compiled == []
        assert module(ONE) == 4
        assert module(ONE) == 4
        assert compiled == [module]
        multiply_by(5, module)
        assert module(ONE) == 5
        assert compiled == [module, module]


@pytest.mark.parametrize(
    "factor",
    [
        lambda module: float(module(ONE)),
        lambda module: float(module.forward(ONE)),
        lambda module: float(type(module).forward(module, ONE)),
        lambda module: float(module.code.split("*")[1].split(";")[0]),
        lambda module: float(module._code.split("*")[1].split(";")[0]),
    ],
    ids=["call", "forward", "forward of the class", "code", "_code"],
)
def test_whatever_is_asked_for_is_that_of_the_graph_now(factor: Callable[[GraphModule], float]) -> None:
    old = half()
    with quick_passes():
        for module in (old, half()):
            for number in (2, 3):
                multiply_by(number, module)
                assert factor(module) == number
    multiply_by(4, old)  # by torch alone
    assert factor(old) == 4


def test_what_was_put_off_is_still_done_afterwards() -> None:
    with quick_passes():
        module = half()
        multiply_by(2, module)
    assert module(ONE) == 2


def test_each_module_has_its_own_code() -> None:
    with quick_passes():
        first, second = half(), half()
        multiply_by(2, second)
        assert (first(ONE), second(ONE)) == (0.5, 2)


def test_signatures_are_told() -> None:
    """torch.export reads the names of inputs there."""
    with quick_passes():
        assert list(inspect.signature(half().forward).parameters) == ["x"]


def test_trees_of_inputs_and_outputs_are_told() -> None:
    x = tree_structure([0])
    with quick_passes():
        module = half()
        module.graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(["x"], x, x)))
        module.recompile()
        assert module._in_spec is x
        assert module._out_spec is x


def test_dead_code_is_eliminated() -> None:
    with quick_passes():
        module = half()
        assert not module.graph.eliminate_dead_code()
        add_dead_code(module)
        assert module.graph.eliminate_dead_code()
        assert [node.op for node in module.graph.nodes] == ["placeholder", "call_function", "output"]


def test_dead_code_in_a_graph_within_is_eliminated() -> None:
    inner = half()
    add_dead_code(inner)
    graph = Graph()
    graph.output((graph.placeholder("x"), graph.get_attr("inner")))
    with quick_passes():
        assert GraphModule({"inner": inner}, graph).graph.eliminate_dead_code()
    assert len(inner.graph.nodes) == 3


def test_what_must_not_go_can_be_told() -> None:
    with quick_passes():
        module = half()
        add_dead_code(module)
        assert not module.graph.eliminate_dead_code(lambda node: True)


def test_torch_is_left_as_it_was() -> None:
    def now() -> tuple[object, object]:
        return GraphModule.recompile, Graph.eliminate_dead_code

    before = now()
    with quick_passes():
        within = now()
        with quick_passes():
            assert now() == within
        assert now() == within
    assert now() == before
    with pytest.raises(RuntimeError), quick_passes():
        raise RuntimeError
    assert now() == before
    assert not set(before) & set(within)


@pytest.mark.parametrize("more", [True, False], ids=["makes more", "makes less"])
def test_another_torch_is_let_alone(more: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recompile = fx_passes._recompile

    def other(module: GraphModule) -> None:
        if more:
            recompile(module)
            module._of_later_versions = 1

    monkeypatch.setattr(fx_passes, "_recompile", other)
    before = GraphModule.recompile
    with quick_passes():
        assert GraphModule.recompile is before


def test_less_than_a_number_is_not_at_least_that_number() -> None:
    class Less(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x < 0.5

    x = torch.tensor([0.0, 0.5, 1.0])
    program = torch.export.export(Less(), (x,))
    express_less_than(program.graph)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [torch.ops.aten.ge.Scalar, torch.ops.aten.logical_not.default]
    assert program.module()(x).tolist() == [True, False, False]


def test_expm1_is_expressed_by_exp() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.expm1(x) * 2

    program = torch.export.export(Module(), (torch.ones(3),))
    express_expm1(program.graph)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.aten.expm1.default not in targets
    x = torch.tensor([-2.0, 1e-3, 0.5])
    torch.testing.assert_close(program.module()(x), torch.expm1(x) * 2, rtol=0, atol=5e-7)


def test_floor_without_its_operator() -> None:
    class Floor(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.floor(x)

    x = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.75, 2.0])
    program = torch.export.export(Floor(), (x,))
    express_floor(program.graph)
    assert torch.ops.aten.floor.default not in {node.target for node in program.graph.nodes}
    assert program.module()(x).tolist() == x.floor().tolist()
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.gt.Tensor):
        assert node.meta["val"].dtype == torch.bool


@pytest.mark.parametrize(
    "options",
    [{}, {"correction": 0}, {"dim": -1, "unbiased": False}, {"dim": -1, "keepdim": True}, {"dim": (0, 2)}],
)
@pytest.mark.parametrize("compute", [torch.var, torch.std])
def test_variance_without_its_operator(compute: Callable[..., torch.Tensor], options: dict[str, Any]) -> None:
    class Spread(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return compute(x, **options)

    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Spread(), (x,))
    express_variance(program.graph)
    names = {str(node.target) for node in program.graph.nodes}
    assert not any(name.startswith(("aten.var", "aten.std")) for name in names)
    torch.testing.assert_close(program.module()(x), compute(x, **options))


def test_integers_are_divided_as_floats() -> None:
    class Ratio(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 4

    x = torch.tensor([1, 2, 8])
    program = torch.export.export(Ratio(), (x,))
    divide_as_floats(program.graph)
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.div.Tensor)
    assert all(operand.meta["val"].dtype == torch.float32 for operand in node.all_input_nodes)
    assert program.module()(x).tolist() == [0.25, 0.5, 2.0]


def test_norms_without_a_weight_have_ones() -> None:
    class Norm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.rms_norm(x, (4,), None, 1e-6)

    x = torch.randn(3, 4)
    program = torch.export.export(Norm(), (x,))
    weigh_norms(program.graph)
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.rms_norm.default)
    assert node.args[2] is not None
    torch.testing.assert_close(program.module()(x), Norm()(x))
