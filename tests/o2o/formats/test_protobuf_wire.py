"""Large data cut out of a message of protobuf, and put back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from o2o.errors import ModelError
from o2o.formats.protobuf_wire import MARK, cut, is_onnx_model, paste
from tests.o2o.onnx_graphs import chain, data_of, everything


def test_cut_and_pasted() -> None:
    data = data_of(everything())
    message, ranges = cut(memoryview(data), 100)
    assert len(ranges) == 2, "the initializer, and the attribute of a node"
    assert len(message) < len(data) - sum(place.size for place in ranges) + 500
    onnx.ModelProto.FromString(message)
    pieces = [data[place.start : place.start + place.size] for place in ranges]
    assert b"".join(paste(message, lambda number: (pieces[number], len(pieces[number])))) == data


def test_nothing_to_cut() -> None:
    data = data_of(chain())
    assert cut(memoryview(data), 4096) == (data, [])


def test_a_graph_in_two_parts() -> None:
    """The wire format allows a message in parts, which are merged."""
    large = chain(large=True)
    rest = onnx.GraphProto()
    rest.initializer.extend(large.graph.initializer)
    large.graph.ClearField("initializer")
    parts = onnx.ModelProto(graph=rest).SerializeToString(), large.SerializeToString()
    message, ranges = cut(memoryview(b"".join(parts)), 4096)
    merged = onnx.ModelProto.FromString(message)
    assert len(ranges) == 1
    assert [t.name for t in merged.graph.initializer if t.external_data] == ["w"]
    assert {e.value for t in merged.graph.initializer for e in t.external_data} == {MARK, "0"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (data_of(chain()), True),
        (data_of(chain())[:40], True),
        (onnx.ModelProto(graph=chain().graph).SerializeToString(), True),
        (b"", False),
        (b"hello world", False),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), False),
        (b"\x08\x0a\x00\x00\x00\x00\x00\x00{", False),
        (np.random.default_rng(0).bytes(1000), False),
    ],
)
def test_by_its_fields(data: bytes, expected: bool) -> None:
    assert is_onnx_model(memoryview(data)) == expected


@pytest.mark.parametrize(
    "data", [b"\x3a\xff\xff\xff\xff\x0f", b"\x3a\x05\x0a\x09", b"\x3b", b"\x08\x80", b"\x3a\x02\x2a"]
)
def test_damaged(data: bytes) -> None:
    with pytest.raises(ModelError, match="damaged"):
        cut(memoryview(data), 0)
