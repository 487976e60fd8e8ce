"""Every filter that takes ONNX, on ONNX: `--check` compares the outputs on ONNX Runtime."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from o2o import filters, formats
from o2o.cli.pipelines import parse
from o2o.filters import pipeline
from o2o.filters.base import ALL_FORMATS
from o2o.model import Model, dims_of
from tests.o2o.onnx_graphs import branches, chain, data_of, decoder, everything, renamed, stacked

pytest.importorskip("onnxruntime")

RUNS: dict[str, list[tuple[Callable[[], onnx.ModelProto], list[str]]]] = {
    "gc": [(branches, []), (chain, []), (decoder, [])],
    "select_op": [
        (branches, ["--by_id", "1-2"]),
        (branches, ["--from", "h", "--to", "z"]),
        (decoder, ["--from", "input_ids,position_ids", "--to", "present.0.key,q"]),
    ],
    "remove_io": [
        (branches, ["output", "--keep_by_name", "z"]),
        (chain, ["input", "--keep_by_name", "x"]),
        (decoder, ["output", "--keep_by_id", "0"]),
    ],
    "rename_io": [
        (branches, ["input", "x=inner.x", "c=condition"]),
        (decoder, ["input", "--regex", r"past_key_values\.(\d)\.(\w+)=past_\2_\1"]),
    ],
    "rename_io_remove_prefix": [(decoder, ["past_key_values."])],
    "rename_io_remove_namespace": [(lambda: renamed(chain(), "x", "tico::x"), [])],
    "reorder_output": [(branches, ["--by_name", "z,y"]), (decoder, ["--by_id", "1,2,0"])],
    "reorder_output_move_0_to_last": [(branches, []), (decoder, [])],
    "reshape_io": [
        (chain, ["output", "--by_shape", "[3]", "[3,1]"]),
        (lambda: decoder(static=True), ["input", "--by_shape", "[1,1]", "[1]"]),
    ],
    "reshape_fc_weight": [(stacked, [])],
    "transpose_io_kvcache": [(decoder, [])],
    "downcast_input_ids": [(decoder, ["--also", "attention_mask,position_ids"])],
    "sign_contract": [(decoder, []), (lambda: decoder(static=True), [])],
    "inspect": [(branches, []), (everything, ["--json"]), (decoder, ["--html"]), (decoder, ["--node-data"])],
    "fuse_bmm_lhs_const": [(branches, []), (decoder, [])],
    "fuse_fc": [(branches, []), (decoder, [])],
    "verify_model": [(branches, []), (chain, []), (decoder, [])],
}
READERS = {"inspect", "verify_model"}
ELSEWHERE = {
    "bind_weights",
    "bucket_kvcache",
    "lower_litert",
    "merge_circles",
    "quantize_weights",
    "raise_circle",
    "diff_model",
    "check_models",
    "history_model",
    "reduce_model",
    "with_file",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(module: str, *arguments: str) -> int:
    return filters.load(module).main(list(arguments))


def given(make: Callable[[], onnx.ModelProto], module: str = "") -> str:
    """The file that a filter reads."""
    Path("in.onnx").write_bytes(data_of(make()))
    if module == "transpose_io_kvcache":
        assert run("sign_contract", "in.onnx", "-o", "signed.onnx") == 0
        return "signed.onnx"
    return "in.onnx"


@pytest.mark.parametrize(
    ("module", "make", "arguments"), [(name, *one) for name, some in RUNS.items() for one in some]
)
def test_runs_and_computes_the_same(
    module: str,
    make: Callable[[], onnx.ModelProto],
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = given(make, module)
    capsys.readouterr()
    if module in READERS:
        assert run(module, *arguments, file) == 0
        assert capsys.readouterr().out
        return
    assert run(module, *arguments, file, "--check", "-o", "out.onnx") == 0
    assert "checked on ONNX Runtime: " in capsys.readouterr().err
    onnx.checker.check_model("out.onnx", full_check=True)
    assert formats.load("out.onnx").history[-1]["filter"] == filters.load(module).name


def test_each_filter_is_here() -> None:
    takes = {name for name in filters.names() if filters.load(name).input_formats == ALL_FORMATS}
    assert takes == RUNS.keys() | ELSEWHERE
    assert len(takes) >= 18


@pytest.mark.parametrize("module", ["wrap_composites", "legalize_onert"])
def test_the_others_refuse_in_one_line(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(module, given(chain))
    error = capsys.readouterr().err
    assert code == 1
    assert "an onnx model, but this filter needs circle" in error
    assert error.count("\n") == 1


def test_passed_on_unchanged() -> None:
    assert run("with_file", given(everything), "-o", "out.onnx") == 0
    assert Path("out.onnx").read_bytes() == Path("in.onnx").read_bytes()


def test_gc_cleans_branches_and_functions() -> None:
    assert run("gc", given(branches), "-o", "out.onnx") == 0
    model = formats.load("out.onnx")
    operators = {node.op_type for graph in model.all_graphs() for node in graph}
    assert operators.isdisjoint({"Neg", "Abs"})
    assert list(model.functions) == [("local", "twice", "")]
    assert set(model.graphs[0].initializers) == {"w", "three", "yes"}


def test_transposed_caches() -> None:
    assert run("transpose_io_kvcache", given(decoder, "transpose_io_kvcache"), "-o", "out.onnx") == 0
    (cache,) = (v for v in formats.load("out.onnx").graphs[0].inputs if v.name == "past_key_values.0.key")
    assert dims_of(cache) == ("B", "P", 2, 4)


def roles_of(model: Model) -> dict[str, str]:
    values = [v for s in model.signatures for v in (*s.inputs.values(), *s.outputs.values())]
    roles = {value.name or "": value.meta.get("role") for value in values}
    return {n: f"{r.kind} {r.layer} {r.layout}" if r.layout else r.kind for n, r in roles.items() if r}


def test_roles_by_names_and_by_operators() -> None:
    assert run("sign_contract", given(decoder), "-o", "named.onnx") == 0
    by_name = roles_of(formats.load("named.onnx"))
    assert by_name == {
        "input_ids": "tokens",
        "attention_mask": "mask",
        "position_ids": "position",
        "past_key_values.0.key": "key_cache 0 BNTH",
        "past_key_values.0.value": "value_cache 0 BNTH",
        "logits": "logits",
        "present.0.key": "key 0 BNTH",
        "present.0.value": "value 0 BNTH",
    }
    model = formats.load("in.onnx")
    for values, letter in ((model.graphs[0].inputs, "i"), (model.graphs[0].outputs, "o")):
        for number, value in enumerate(values):
            if value.name not in ("attention_mask", "position_ids"):
                value.name = f"{letter}{number}"
    formats.save(model, "c.onnx")
    assert run("sign_contract", "c.onnx", "-o", "signed.onnx") == 0
    assert sorted(roles_of(formats.load("signed.onnx")).values()) == sorted(by_name.values())


def test_differences_of_two_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("gc", given(branches), "-o", "out.onnx") == 0
    assert run("check_models", "in.onnx", "out.onnx") == 0
    assert run("diff_model", "in.onnx", "in.onnx") == 0
    assert run("diff_model", "in.onnx", "out.onnx") == 1
    text = capsys.readouterr().out
    assert "- Neg(x) = dead" in text
    assert "graph g, then_branch of If y: 2 operators -> 1, 1 match" in text


def test_history_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.run(parse(f"gc < {given(branches)} | reorder.output --by_id 1,0 > out.onnx")) == 0
    assert run("history_model", "out.onnx", "--replay", "in.onnx") == 0
    assert "the replay of 2 filters gives the same model" in capsys.readouterr().out


def test_a_smaller_model_that_fails() -> None:
    command = ["bash", "-c", "grep -q Lo[o]p {} && exit 3; exit 0"]
    assert run("reduce_model", given(branches), "-o", "small.onnx", "--", *command) == 0
    model = formats.load("small.onnx")
    assert sum(len(graph) for graph in model.all_graphs()) < 11
    assert any(node.op_type == "Loop" for node in model.graphs[0])
    onnx.checker.check_model("small.onnx", full_check=True)


def test_what_the_verifier_finds(capsys: pytest.CaptureFixture[str]) -> None:
    proto = chain()
    proto.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 5
    Path("in.onnx").write_bytes(data_of(proto))
    assert run("verify_model", "in.onnx") == 1
    assert "error V331" in capsys.readouterr().out
    assert run("verify_model", "--engine", "onnx", given(chain)) == 0
    proto = chain()
    proto.graph.node[0].domain = "unknown.vendor"
    proto.opset_import.add(domain="unknown.vendor", version=1)
    Path("other.onnx").write_bytes(data_of(proto))
    capsys.readouterr()
    assert run("verify_model", "--engine", "onnx", "--engine", "litert", "other.onnx") == 1
    said = capsys.readouterr().out
    assert "error V332" in said
    assert "error V301" in said


def test_check_names_the_first_difference(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: Model, args: object) -> None:
        next(node for node in model.graphs[0] if node.op_type == "Mul").op_type = "Add"

    monkeypatch.setattr(filters.load("gc"), "apply", lambda self, model, args: spoil(model, args))
    assert run("gc", given(branches), "--check", "-o", "out.onnx") == 1
    assert "the first tensor that differs is h, by" in capsys.readouterr().err


def test_the_same_bytes_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline in one process writes what a pipe of processes writes."""
    given(decoder)
    stages = [["gc"], ["sign_contract"], ["transpose_io_kvcache"], ["rename_io_remove_prefix", "past_"]]
    data = Path("in.onnx").read_bytes()
    for module, *arguments in stages:
        Path("stdin").write_bytes(data)
        with monkeypatch.context() as patch, open("stdin", "rb") as source, open("stdout", "wb") as sink:
            patch.setattr(sys, "stdin", io.TextIOWrapper(source))
            patch.setattr(sys, "stdout", io.TextIOWrapper(sink))
            assert run(module, *arguments) == 0
            sys.stdout.detach()
            sys.stdin.detach()
        data = Path("stdout").read_bytes()
    text = " | ".join(" ".join(stage) for stage in stages)
    assert pipeline.run(parse(f"{text.replace(' |', ' < in.onnx |', 1)} > piped.onnx")) == 0
    assert Path("piped.onnx").read_bytes() == data


def test_diff_compares_branches_and_functions(capsys: pytest.CaptureFixture[str]) -> None:
    changed = branches()
    (node,) = (node for node in changed.graph.node if node.op_type == "If")
    inner = {attribute.name: attribute.g for attribute in node.attribute}
    inner["else_branch"].node[0].op_type = "Mul"
    inner["then_branch"].initializer[0].float_data[0] = 9
    changed.functions[0].node[0].op_type = "Sub"
    del changed.functions[1]
    for name, proto in (("a", branches()), ("b", changed)):
        Path(f"{name}.onnx").write_bytes(data_of(proto))
    assert run("diff_model", "a.onnx", "a.onnx") == 0
    assert capsys.readouterr().out == ""
    assert run("diff_model", "a.onnx", "b.onnx") == 1
    text = capsys.readouterr().out
    assert (
        "graph g, else_branch of If y: 1 operator -> 1, 0 match\n  - Sub(h, x) = e\n  + Mul(h, x) = e\n"
        in text
    )
    assert "- graph function local.never: 1 operator\n" in text
    assert "graph function local.twice: 1 operator -> 1, 0 match\n" in text
    assert "  inner: 1 of 4 numbers differ, by at most 4" in text
    assert "then_branch" not in text
    assert "local.twice(h)" not in text


def test_inspect_shows_branches_and_functions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", given(branches)) == 0
    text = capsys.readouterr().out
    assert "    local:twice (p) -> (q): 1 operator: Add 1\n" in text
    assert "    then_branch of If y () -> (t): 2 operators: Abs 1, Add 1\n" in text
    assert (
        "    body of Loop z (i, go, a) -> (go_out, b): 3 operators: Add 1, Identity 1, local.twice 1\n"
        in text
    )


def test_a_matrix_that_gives_the_product_its_axes_stays() -> None:
    assert run("reshape_fc_weight", given(stacked), "-o", "out.onnx") == 0
    constants = {tensor.name: list(tensor.dims) for tensor in onnx.load("out.onnx").graph.initializer}
    assert constants == {"w": [1, 1, 4, 5], "w_2d": [4, 5]}


@pytest.mark.parametrize("name", ["gc", "fix_shape", "diff_model"])
def test_strings(name: str, tmp_path: Path) -> None:
    """A constant of strings has no bytes of a fixed width."""
    proto = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (string[2] x) => (string[2] y, string[2] z)
        { y = Identity (x)  z = Identity (words) }"""
    )
    proto.graph.initializer.append(
        onnx.helper.make_tensor("words", onnx.TensorProto.STRING, [2], [b"a", b""])
    )
    file = tmp_path / "in.onnx"
    file.write_bytes(proto.SerializeToString())
    output = ["--check", "-o", str(tmp_path / "out.onnx")]
    assert filters.load(name).main([str(file), *([str(file)] if name == "diff_model" else output)]) == 0
