"""bind.weights.py: references to a checkpoint become its numbers; what does not fit is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.graph_cache import GraphCache
from export.graph_groups import traced
from export.graph_specs import GraphSpec
from export.model import LanguageModel
from o2o import formats
from o2o.filters import bind_weights, inspect
from o2o.formats.tensors import LARGE, storage_key
from o2o.formats.unbound_tensor import UnboundTensor
from o2o.model import Model
from o2o.streams.disk_cache import DiskCache
from o2o.weights.checkpoint import open_checkpoint
from tests.checkpoints import DEMO, GROUPED, write_checkpoint
from tests.compiled import compiled_once
from tests.o2o.graphs import Graph, linear
from tests.peak import command, peak

LAYER = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
SMALL = "model.norm.weight"

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "tied": GROUPED,
    "tied bf16 in shards": GROUPED | {"dtype": "bfloat16", "shards": 3},
    "tied f16 .bin": GROUPED | {"dtype": "float16", "format": "bin"},
    "demo": DEMO,
    "demo bf16": DEMO | {"dtype": "bfloat16"},
    "demo f16 in shards": DEMO | {"dtype": "float16", "shards": 2},
    "demo bf16 .bin in shards": DEMO | {"dtype": "bfloat16", "format": "bin", "shards": 2},
}

Exporter = Callable[..., Path]


@pytest.fixture
def export(shared_directory: Path, tmp_path: Path) -> Iterator[Exporter]:
    """(checkpoint, weights) -> the file of its prefill graph."""

    prefill = GraphSpec("prefill", "prefill.circle", 32, None)

    def export_(checkpoint: Path, weights: str = "external") -> Path:
        path = tmp_path / f"{checkpoint.name}.{weights}.circle"
        opened = open_checkpoint(checkpoint)
        cache = GraphCache(opened, DiskCache(shared_directory / "graphs"))
        graph = traced(prefill, opened, cache, "eager", False, lambda line: None)
        formats.save(graph.bind(opened, weights, "float32"), path)  # type: ignore[arg-type]
        return path

    with compiled_once(shared_directory):
        yield export_


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", **GROUPED)


def tensors_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint as float32, as PyTorch reads them."""
    actual: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.iterdir()):
        if file.suffix == ".safetensors":
            actual |= load_file(file)
        elif file.suffix == ".bin":
            actual |= torch.load(file)
    return {name: tensor.float().numpy() for name, tensor in actual.items()}


def edit(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "model.safetensors")


def constants(model: Model) -> dict[str, ir.Value]:
    return {value.name or "": value for graph in model.graphs for value in graph.initializers.values()}


def bound(path: Path, *arguments: str) -> Path:
    target = path.with_suffix(".bound")
    assert bind_weights.main([str(path), *arguments, "-o", str(target)]) == 0
    return target


class Refusals:
    """`refused(path, *arguments)`: the one line of bind.weights.py, which leaves the old output as it was."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory, self.capture = directory, capture

    def __call__(self, path: Path, *arguments: str) -> str:
        folder = self.directory / "output"
        folder.mkdir(exist_ok=True)
        (folder / "old").write_bytes(b"old")
        there = set(os.listdir(folder))
        self.capture.readouterr()
        assert bind_weights.main([str(path), *arguments, "-o", str(folder / "old")]) == 1
        captured = self.capture.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert "internal error" not in captured.err
        assert (folder / "old").read_bytes() == b"old"
        assert set(os.listdir(folder)) <= there, "no litter"
        return captured.err.strip().removeprefix("bind.weights.py: ")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusals:
    return Refusals(tmp_path, capsys)


# --- what is bound ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_is_the_file_that_embedding_gives(name: str, export: Exporter, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", **CHECKPOINTS[name])
    external = export(checkpoint)
    assert external.stat().st_size < 100_000, "a graph without its large weights"
    result = bound(external)
    assert result.read_bytes() == export(checkpoint, "embed").read_bytes()

    expected, actual = tensors_of(checkpoint), constants(formats.load(result))
    parameters = LanguageModel.read(checkpoint).parameters
    assert actual.keys() >= parameters.keys()
    for parameter in parameters:
        tensor = actual[parameter].const_value
        assert tensor is not None
        assert tensor.dtype == ir.DataType.FLOAT
        np.testing.assert_array_equal(tensor.numpy(), expected[parameter], err_msg=parameter)


def test_what_is_tied_is_there_once(checkpoint: Path, export: Exporter) -> None:
    data = bound(export(checkpoint)).read_bytes()
    numbers = tensors_of(checkpoint)[EMBEDDING].tobytes()
    assert data.count(numbers) == 1
    assert "lm_head.weight" not in constants(formats.loads(data))


def test_equal_tensors_are_there_once(
    checkpoint: Path, export: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    other = LAYER.replace(".0.", ".2.")
    edit(checkpoint, lambda tensors: tensors.update({other: tensors[LAYER].clone()}))
    path = export(checkpoint)
    capsys.readouterr()
    data = bound(path).read_bytes()
    size = tensors_of(checkpoint)[LAYER].nbytes
    assert capsys.readouterr().err == (
        f"bind.weights.py: bound 16 tensors; equal ones are stored once, which saves {size:,} bytes\n"
    )
    actual = constants(formats.loads(data))
    keys = [storage_key(actual[name].const_value) for name in (LAYER, other)]  # type: ignore[arg-type]
    assert keys[0] == keys[1]
    assert data == export(checkpoint, "embed").read_bytes()


def test_only_large_weights_are_references(checkpoint: Path, export: Exporter) -> None:
    actual = constants(formats.load(export(checkpoint)))
    for parameter, tensor in tensors_of(checkpoint).items():
        assert isinstance(actual[parameter].const_value, UnboundTensor) == (tensor.nbytes >= LARGE), parameter


def test_a_model_without_references_passes_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.circle"
    formats.save(linear(), path)
    assert bound(path).read_bytes() == path.read_bytes()
    assert capsys.readouterr().err == "bind.weights.py: nothing to bind: the model holds its weights\n"


def test_bound_twice_is_bound_once(checkpoint: Path, export: Exporter) -> None:
    once = bound(export(checkpoint)).read_bytes()
    (checkpoint / "once").write_bytes(once)
    assert bound(checkpoint / "once").read_bytes() == once


def test_inspect_says_what_is_to_be_bound(
    checkpoint: Path, export: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = export(checkpoint), checkpoint / "model.safetensors"
    capsys.readouterr()
    assert inspect.main([str(path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    numbers = [tensor.nbytes for tensor in tensors_of(checkpoint).values() if tensor.nbytes >= LARGE]
    assert summary["references"] == {"count": 16, "bytes": sum(numbers), "files": [str(file)]}
    assert summary["constants"]["bytes"] < path.stat().st_size
    assert inspect.main([str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"references: 16 tensors, {sum(numbers):,} bytes when they are bound, in {file}" in text
    assert inspect.main([str(bound(path)), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["references"] == {"count": 0, "bytes": 0, "files": []}
    assert (summary["constants"]["form"], summary["constants"]["bytes"] > sum(numbers)) == ("inside", True)


# --- from elsewhere, or in part --------------------------------------------------------------------------


def test_a_checkpoint_that_was_moved(checkpoint: Path, export: Exporter, refused: Refusals) -> None:
    path = export(checkpoint)
    expected = bound(path).read_bytes()
    elsewhere = checkpoint.rename(checkpoint.with_name("elsewhere"))
    message = refused(path)
    assert str(checkpoint / "model.safetensors") in message
    assert "does not exist: bind.weights.py --checkpoint DIR takes the weights from another" in message
    assert bound(path, "--checkpoint", str(elsewhere)).read_bytes() == expected


def test_another_form_of_the_same_checkpoint(checkpoint: Path, export: Exporter, tmp_path: Path) -> None:
    path = export(checkpoint)
    again = write_checkpoint(tmp_path / "again", **GROUPED, shards=3)
    assert bound(path, "--checkpoint", str(again)).read_bytes() == bound(path).read_bytes()


def test_a_model_that_has_no_place_for_some(checkpoint: Path, export: Exporter, refused: Refusals) -> None:
    path = export(checkpoint)
    expected = bound(path).read_bytes()
    edit(checkpoint, lambda tensors: tensors.update(extra=torch.zeros(2000), more=torch.zeros(1)))
    message = refused(path)
    assert message == (
        f"{checkpoint / 'model.safetensors'} does not fit the model: it holds extra, more, which the model "
        "does not use (--partial accepts such tensors)"
    )
    assert bound(path, "--partial").read_bytes() == expected


def test_a_checkpoint_with_other_small_weights(checkpoint: Path, export: Exporter, refused: Refusals) -> None:
    """Those are in the graph since the export: old ones and new ones must not be mixed."""
    path = export(checkpoint)
    edit(checkpoint, lambda tensors: tensors.update({LAYER: tensors[LAYER] + 1}))
    bound(path)  # what is bound now is what is there now
    edit(checkpoint, lambda tensors: tensors.update({SMALL: tensors[SMALL] + 1}))
    message = refused(path)
    assert message.endswith(
        f"does not fit the model: it has other numbers for {SMALL} than at export (export again)"
    )
    edit(checkpoint, lambda tensors: tensors.pop(SMALL))
    assert f"it lacks {SMALL}" in refused(path)


# --- what does not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(LAYER), f"it lacks {LAYER}"),
        (lambda t: t.update({LAYER: t[LAYER].T.contiguous()}), f"it has {LAYER} as [48, 60], not [60, 48]"),
        (lambda t: t.update({LAYER: torch.zeros(60, 48, dtype=torch.int32)}), "is stored as I32, not as a"),
        (lambda t: [t.pop(name) for name in list(t) if "mlp" in name], "and 5 more"),
    ],
    ids=["missing", "shape", "integers", "many missing"],
)
def test_a_checkpoint_that_changed(
    checkpoint: Path, export: Exporter, refused: Refusals, change: Any, complaint: str
) -> None:
    path = export(checkpoint)
    edit(checkpoint, change)
    message = refused(path)
    assert complaint in message
    assert str(checkpoint / "model.safetensors") in message


@pytest.mark.parametrize(
    ("folder", "complaint"),
    [("nowhere", "nowhere has no config.json"), ("empty", "empty has no weights")],
)
def test_no_such_checkpoint(
    checkpoint: Path, export: Exporter, refused: Refusals, tmp_path: Path, folder: str, complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copy(checkpoint / "config.json", tmp_path / "empty")
    assert complaint in refused(export(checkpoint), "--checkpoint", str(tmp_path / folder))


@pytest.mark.parametrize("length", [5, 1000, 100_000])
def test_a_checkpoint_that_is_cut_short(
    checkpoint: Path, export: Exporter, refused: Refusals, length: int
) -> None:
    path = export(checkpoint)
    os.truncate(checkpoint / "model.safetensors", length)
    assert f"{checkpoint / 'model.safetensors'} is truncated" in refused(path)


def harm(file: Path, how: str) -> None:
    if how == "cut":
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()


@pytest.mark.parametrize("step", ["bind", "deduplicate_constants"], ids=["compared", "written"])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_checkpoint_that_is_harmed_before_it_is(
    step: str, form: str, dtype: str, how: str, export: Exporter, refused: Refusals, tmp_path: Path
) -> None:
    """When its header was read all was well; now someone cuts the file, or takes it away. It is named also
    where the output is in its folder."""
    checkpoint = write_checkpoint(tmp_path / "output", **GROUPED, dtype=dtype, format=form)
    file = next(file for file in checkpoint.iterdir() if file.suffix in (".safetensors", ".bin"))
    path, real = export(checkpoint), getattr(bind_weights, step)

    def then_harm(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        harm(file, how)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bind_weights, step, then_harm)
        message = refused(path)
    reason = {"cut": "the file became shorter while it was read", "gone": "No such file or directory"}[how]
    assert message == f"{file}: {reason}"


# --- memory ----------------------------------------------------------------------------------------------


def test_much_data_takes_little_memory(tmp_path: Path) -> None:
    """200 MB that are copied and 100 MB that are converted, all of them holes."""
    shapes = {"as_it_is": ("F32", (51200, 1024)), "converted": ("BF16", (51000, 1024))}
    header, start = {}, 0
    for name, (dtype, shape) in shapes.items():
        end = start + shape[0] * shape[1] * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + start)
    graph = Graph("main")
    x = graph.input("x", [1, 1024])
    for name, (_, shape) in shapes.items():
        weight = graph.constant(name, np.zeros((1, 1), np.float32))
        weight.const_value = UnboundTensor(name, path, name, ir.DataType.FLOAT, shape)
        weight.shape = ir.Shape(shape)
        graph.output(graph.fc(x, weight, f"y_{name}"))
    formats.save(graph.model(), tmp_path / "in.circle")

    arguments = command("bind_weights", tmp_path / "in.circle", "-o", tmp_path / "out.circle")
    done = subprocess.run(arguments, capture_output=True, check=True)
    numbers = sum(rows * columns * 4 for _, (rows, columns) in shapes.values())
    assert numbers < (tmp_path / "out.circle").stat().st_size < numbers + 4096
    assert peak(done.stderr) < 150 << 20
    (tmp_path / "out.circle").unlink()
