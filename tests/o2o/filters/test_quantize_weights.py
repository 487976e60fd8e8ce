"""quantize.weights.py: recipes on files and references, on LiteRT, and what it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from ai_edge_litert.compiled_model import CompiledModel
from safetensors.torch import save_file

from export import build_graph
from o2o import formats
from o2o.filters import bind_weights, inspect, merge_circles, quantize_weights
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from o2o.quantization.recipes import RECIPES
from o2o.rewriting.builder import add_constant
from tests.checkpoints import GROUPED, write_checkpoint
from tests.compiled import compiled_once
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import FLOAT, Graph, linear, run, weights
from tests.o2o.quantization.models import constants, language_model, meaning
from tests.peak import command as measured
from tests.peak import peak

QUANTISING = [name for name in RECIPES if name != "none"]
ROWS, COLUMNS, BATCH = 96, 256, 8


def layer() -> Model:
    graph = Graph("main")
    graph.output(
        graph.fc(graph.input("x", [BATCH, COLUMNS]), graph.constant("w", weights(ROWS, COLUMNS)), "y")
    )
    return graph.model(format="tflite")


def compiled(data: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output of the first signature, as LiteRT's CompiledModel computes it."""
    model = CompiledModel.from_buffer(data)
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    for buffer, array in zip(inputs, feeds.values(), strict=True):
        buffer.write(array)
    model.run_by_index(0, inputs, outputs)
    return np.array(outputs[0].read(BATCH * ROWS, np.float32)).reshape(BATCH, ROWS)


@pytest.mark.parametrize("recipe", QUANTISING)
def test_litert_computes_what_the_report_explains(recipe: str, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    model = command(layer(), "--recipe", recipe, "--report", str(file))
    (contents,) = json.loads(file.read_text())["tensors"]
    (value,) = constants(model).values()
    x, w, meant = weights(BATCH, COLUMNS, seed=5), weights(ROWS, COLUMNS), meaning(value)
    for y in (run(model, {"x": x})["y"], compiled(formats.dumps(model), {"x": x})):
        # What the kernel loses when it quantizes x: half a step, of 254 from end to end, a number.
        step = np.abs(x).max(1, keepdims=True) / 127 if recipe.startswith("dynamic") else 0
        bound = step / 2 * np.abs(meant).sum(1) + 1e-4
        assert (np.abs(y - x @ meant.T) <= bound).all()
        # Of independent numbers, the share of the result that is lost is that of the weights.
        lost = np.sqrt(((y - x @ w.T) ** 2).mean() / ((x @ w.T) ** 2).mean())
        inputs = 0.01 if recipe.startswith("dynamic") else 0
        assert lost < 1.2 * (contents["error"]["rms"] + inputs)
        assert lost > 0.7 * contents["error"]["rms"]


@pytest.mark.parametrize("recipe", QUANTISING)
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_two_signatures_on_litert(recipe: str, tied: bool, command: Command) -> None:
    """By the recipe's own --check, and against the floats that the stored numbers stand for."""
    model = command(language_model("tflite", tied), "--recipe", recipe, "--check")
    assert "checked on LiteRT: 2 outputs the same" in command.said
    exact = language_model("tflite", tied)
    for graph, other in enumerate(exact.graphs):
        for name, value in constants(model, graph).items():
            if name not in other.initializers:  # the head, which is apart now
                (head,) = (use.node for use in other.initializers["embed"].uses() if use.idx == 1)
                head.replace_input_with(1, add_constant(other, meaning(value), name))
                continue
            other.initializers[name].const_value = ir.Tensor(meaning(value), name=name)
    for graph, T in enumerate((4, 1)):
        feeds = {"input_ids": np.array([[5, 6, 7, 8][:T]])}
        result = run(model, feeds, model.graphs[graph])["logits"]
        expected = run(exact, feeds, exact.graphs[graph])["logits"]
        lost = np.sqrt(((result - expected) ** 2).mean() / (expected**2).mean())
        assert lost < (0.05 if recipe.startswith("dynamic") else 1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_file_is_larger(recipe: str, command: Command) -> None:
    for model in (language_model(), language_model(tied=True)):
        before = len(formats.dumps(model))
        code, target = command.run(model, "--recipe", recipe)
        assert code == 0
        assert target.stat().st_size <= before


def test_what_it_says(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    model = command(language_model(), "--recipe", "true", "--embedding", "float", "--report", str(file))
    contents = json.loads(file.read_text())
    assert (contents["recipe"], contents["embedding"], contents["head"]) == ("dynamic_int8", "float", "int8")
    by_name = {entry["name"]: entry for entry in contents["tensors"]}
    assert set(by_name) == {"embed", "up", "down", "head"}
    embed, up = by_name["embed"], by_name["up"]
    assert (embed["scheme"], embed["reason"], embed["bytes"]) == (
        "float",
        "the recipe has no scheme for it",
        [32768, 32768],
    )
    assert (up["scheme"], up["parts"], up["shape"]) == ("int8", ["matrix"], [128, 64])
    assert up["bytes"] == [32768, 128 * 64 + 12 * 128]
    assert 0.004 < up["error"]["rms"] < 0.01
    assert up["error"]["max"] < 1 / 254 * 1.01
    sizes = [entry["bytes"] for entry in contents["tensors"]]
    assert contents["bytes"] == [sum(before for before, _ in sizes), sum(after for _, after in sizes)]
    assert command.said.startswith("quantize.weights.py: dynamic_int8: 3 to int8 (1 unchanged), 131,072")
    assert command.said.count("\n") == 1
    entry = model.history[-1]
    assert entry["arguments"] == ["--recipe", "true", "--embedding", "float"], "not where the report went"


def test_inspect_tells_it(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, target = command.run(language_model(), "--recipe", "dynamic_int4_block32")
    assert code == 0
    assert inspect.main([str(target)]) == 0
    expected = "quantization: dynamic_int4_block32 (matrices int4_block32, embedding int8, head int8): "
    assert expected + "2 of int4_block32, 2 of int8" in capsys.readouterr().out
    assert inspect.main([str(target), "--json"]) == 0
    (step,) = json.loads(capsys.readouterr().out)["quantization"]
    assert step["tensors"] == {"int4_block32": 2, "int8": 2}


def test_none_leaves_no_trace(command: Command) -> None:
    before = language_model()
    assert formats.dumps(command(before, "--recipe", "false")) == formats.dumps(before)
    assert "4 tensors not quantized: the recipe has no scheme for it" in command.said


@pytest.mark.parametrize("recipe", QUANTISING)
def test_where_nothing_becomes_smaller_the_file_is_as_it_was(recipe: str, command: Command) -> None:
    short = linear()  # rows of four
    for before in (short, command(language_model(), "--recipe", recipe)):
        assert formats.dumps(command(before, "--recipe", recipe)) == formats.dumps(before)
        assert "not quantized" in command.said or "the model has no float weights" in command.said


def test_unknown_names(command: Command) -> None:
    code, message = command.refusal(language_model(), "--recipe", "int3")
    assert (code, "unknown recipe 'int3': choose from dynamic_int8" in message) == (2, True)
    code, message = command.refusal(language_model(), "--head", "int7")
    assert (code, "unknown scheme 'int7': choose from float, float16" in message) == (2, True)


def test_what_cannot_be_stored_is_refused(command: Command) -> None:
    model = language_model()
    w = weights(128, 64)
    w[3, 4] = np.inf
    model.graphs[0].initializers["up"].const_value = ir.Tensor(w, name="up")
    code, message = command.refusal(model)
    assert (code, message) == (
        1,
        "up has 1 number that is not finite, or beyond 3.4e+38, the first is inf at [3, 4]: "
        "int8 cannot store them",
    )


def test_what_has_no_weights_left_is_told_so(command: Command) -> None:
    command(command(language_model()), "--recipe", "float16")
    assert command.said == "quantize.weights.py: the model has no float weights\n"


def test_the_report_does_not_replace_the_model(command: Command, tmp_path: Path) -> None:
    source, target = tmp_path / "model.circle", tmp_path / "out"
    formats.save(language_model(), source)
    argv = [str(source), "-o", str(target), "--report", str(tmp_path / "." / "out")]
    assert quantize_weights.main(argv) == 2
    assert not target.exists()


def test_no_folder_for_the_report(command: Command, tmp_path: Path) -> None:
    code, message = command.refusal(language_model(), "--report", str(tmp_path / "nowhere" / "r.json"))
    assert (code, "No such file or directory" in message) == (1, True)


# ---- references to a checkpoint ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of a prefill and a decode graph of a checkpoint, whose weights are `external` or `embed`."""
    folder = tmp_path_factory.mktemp("exported")
    config = GROUPED | {"num_hidden_layers": 1, "dtype": "bfloat16", "shards": 2}
    checkpoint = write_checkpoint(folder / "checkpoint", **config)
    result = {}
    with compiled_once(shared_directory):
        for form in ("external", "embed"):
            prefill, decode = (str(folder / f"{name}.{form}.circle") for name in ("prefill", "decode"))
            formats.save(build_graph.prefill(checkpoint, weights=form), prefill)  # type: ignore[arg-type]
            formats.save(build_graph.decode(checkpoint, 32, "static", weights=form), decode)  # type: ignore[arg-type]
            result[form] = folder / f"{form}.circle"
            assert merge_circles.main([prefill, decode, "-o", str(result[form])]) == 0
    return result


@pytest.mark.parametrize("recipe", QUANTISING)
def test_from_the_checkpoint_or_from_the_file(recipe: str, exported: dict[str, Path], tmp_path: Path) -> None:
    """What is quantized becomes numbers, the rest stays references, which bind.weights.py resolves."""
    results = {}
    for form in ("external", "embed"):
        file, bound = tmp_path / f"{form}.circle", tmp_path / f"{form}.bound.circle"
        flags = ["--recipe", recipe, "--embedding", "float"]
        assert quantize_weights.main([*flags, str(exported[form]), "-o", str(file)]) == 0
        model = formats.load(file)
        left = {
            v.name for v in model.graphs[0].initializers.values() if isinstance(v.const_value, UnboundTensor)
        }
        # the table is the head's, too: tied, it stays as exact as the embedding
        assert left == ({"model.embed_tokens.weight"} if form == "external" else set())
        assert bind_weights.main([str(file), "-o", str(bound)]) == 0
        results[form] = formats.load(bound)
    for graph in (0, 1):
        first, second = (constants(results[form], graph) for form in ("external", "embed"))
        assert {n: (v.dtype, meaning(v).tobytes()) for n, v in first.items()} == {
            n: (v.dtype, meaning(v).tobytes()) for n, v in second.items()
        }
    feeds = {
        v.name or "": np.zeros(v.shape.numpy(), v.dtype.numpy()) for v in results["embed"].graphs[0].inputs
    }  # type: ignore[union-attr]
    result, expected = (run(lower_to_litert(results[form]), feeds) for form in ("external", "embed"))
    for name in expected:
        np.testing.assert_array_equal(result[name], expected[name])


def test_in_little_memory(tmp_path: Path) -> None:
    """Four tables of 24 MB in the checkpoint, 48 as float32; some 60 are Python and its libraries."""
    shape = (3000, 4096)
    path = tmp_path / "model.safetensors"
    graph = Graph("main")
    x = graph.input("x", [1, shape[1]])
    tensors = {}
    for k in range(4):
        tensors[f"w{k}"] = torch.randn(shape, generator=torch.Generator().manual_seed(k)).bfloat16()
        w = graph.constant(f"w{k}", np.zeros((1, shape[1]), np.float32))
        w.shape, w.const_value = ir.Shape(shape), UnboundTensor(f"w{k}", path, f"w{k}", FLOAT, shape)
        graph.output(graph.fc(x, w, f"y{k}"))
    save_file(tensors, path)
    formats.save(graph.model(), tmp_path / "in.circle")
    for recipe in ("dynamic_int8", "dynamic_int4_block32"):
        arguments = ("--recipe", recipe, tmp_path / "in.circle", "-o", tmp_path / "out.circle")
        done = subprocess.run(measured("quantize_weights", *arguments), stderr=subprocess.PIPE, check=True)
        assert peak(done.stderr) < 100 << 20
