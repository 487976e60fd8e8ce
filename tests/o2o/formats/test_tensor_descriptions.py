"""TFLITE_METADATA follows the inputs and outputs of the model."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import pytest

from o2o import formats
from o2o.filters.merge_circles import MergeCircles
from o2o.formats.tensor_descriptions import METADATA_NAME, updated
from o2o.model import Model
from tests.o2o.filters.conftest import Command
from tests.o2o.graphs import Graph


def table(builder: flatbuffers.Builder, **fields: Any) -> int:
    """A table with offsets in the slots `s0`, `s1`, ..."""
    slots = {int(name[1:]): offset for name, offset in fields.items()}
    builder.StartObject(max(slots, default=-1) + 1)
    for slot, offset in slots.items():
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    return int(builder.EndObject())


def vector(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def metadata(inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    builder = flatbuffers.Builder(0)

    def described(names: Sequence[str]) -> int:
        pairs = [(builder.CreateString(name), builder.CreateString(f"about {name}")) for name in names]
        return vector(builder, [table(builder, s0=name, s1=about) for name, about in pairs])

    group = table(
        builder,
        s0=builder.CreateString("group"),
        s1=vector(builder, [builder.CreateString(name) for name in outputs]),
    )
    subgraph = table(builder, s2=described(inputs), s3=described(outputs), s8=vector(builder, [group]))
    root = table(builder, s0=builder.CreateString("model"), s3=vector(builder, [subgraph]))
    builder.Finish(root, b"M001")
    return bytes(builder.Output())


def parse(data: bytes) -> dict[str, list[str]]:
    """What a reader of the metadata sees, through flatbuffers' own tables."""

    def entries(parent: flatbuffers.table.Table, slot: int) -> list[flatbuffers.table.Table]:
        offset = parent.Offset(4 + 2 * slot)
        if not offset:
            return []
        start, count = parent.Vector(offset), parent.VectorLen(offset)
        return [flatbuffers.table.Table(data, parent.Indirect(start + 4 * index)) for index in range(count)]

    def string(parent: flatbuffers.table.Table, slot: int) -> str:
        return parent.String(parent.Pos + parent.Offset(4 + 2 * slot)).decode()

    def strings(parent: flatbuffers.table.Table, slot: int) -> list[str]:
        offset = parent.Offset(4 + 2 * slot)
        start = parent.Vector(offset)
        return [parent.String(start + 4 * index).decode() for index in range(parent.VectorLen(offset))]

    root = flatbuffers.table.Table(data, struct.unpack_from("<I", data)[0])
    result: dict[str, list[str]] = {"inputs": [], "outputs": [], "about": [], "group": []}
    for subgraph in entries(root, 3):
        for key, slot in (("inputs", 2), ("outputs", 3)):
            result[key] += [string(one, 0) for one in entries(subgraph, slot)]
            result["about"] += [string(one, 1) for one in entries(subgraph, slot)]
        for group in entries(subgraph, 8):
            result["group"] += strings(group, 1)
    return result


def described() -> Model:
    """x and y give their sum, difference and product; each is described."""
    graph = Graph("main")
    x, y = graph.input("x", [2]), graph.input("y", [2])
    names = ("sum", "difference", "product")
    operators = zip(("ADD", "SUB", "MUL"), names, strict=True)
    graph.output(*(graph.op(op, [x, y], [2], name=name) for op, name in operators))
    model = graph.model(format="tflite")
    model.metadata.append((METADATA_NAME, metadata(["x", "y"], names)))
    return formats.loads(formats.dumps(model))


def of(model: Model) -> dict[str, list[str]]:
    """The descriptions in the file of a model."""
    return parse(dict(formats.loads(formats.dumps(model)).metadata)[METADATA_NAME])


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], Command]:
    return lambda module: Command(module, tmp_path, capsys)


def test_what_does_not_change_stays_byte_for_byte() -> None:
    model = described()
    before = dict(model.metadata)[METADATA_NAME]
    assert updated(model, before) == before
    assert of(model)["outputs"] == ["sum", "difference", "product"]


def test_removed(run: Callable[[str], Command]) -> None:
    after = of(run("remove_io")(described(), "output", "--keep_by_name", "sum,product"))
    assert (after["inputs"], after["outputs"]) == (["x", "y"], ["sum", "product"])
    assert after["about"] == ["about x", "about y", "about sum", "about product"]


def test_reordered(run: Callable[[str], Command]) -> None:
    after = of(run("reorder_output")(described(), "--by_id", "2,0,1"))
    assert after["outputs"] == ["product", "sum", "difference"]
    assert after["about"][2:] == ["about product", "about sum", "about difference"]


def test_renamed(run: Callable[[str], Command]) -> None:
    after = of(run("rename_io")(described(), "output", "sum=a much longer name", "product=p"))
    assert after["outputs"] == ["a much longer name", "difference", "p"]
    assert after["group"] == ["a much longer name", "difference", "p"]
    assert after["about"][2:] == ["about sum", "about difference", "about product"]


def test_the_second_file_of_a_merge_has_no_descriptions() -> None:
    first, second = described(), described()
    second.signatures[0].name = "second"
    merged = MergeCircles().merged([first, second], ["a", "b"])
    assert of(merged)["outputs"] == ["sum", "difference", "product"]


def test_an_output_without_a_description_in_front(run: Callable[[str], Command]) -> None:
    """The list cannot say that, so it becomes empty."""
    model = described()
    graph = model.graphs[0]
    value = next(iter(graph)).inputs[0]
    graph.outputs.insert(0, value)
    model.signatures.clear()
    assert of(model)["outputs"] == []
    assert of(model)["inputs"] == ["x", "y"]


@pytest.mark.parametrize("data", [b"", b"M001", b"\xff" * 40, metadata(["x"], ["sum"])[:50]])
def test_damaged_metadata_stays(data: bytes) -> None:
    model = described()
    model.graphs[0].outputs.pop()
    assert updated(model, data) == data
