"""Fields of a protobuf message."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from o2o.errors import ModelError
from o2o.streams.protobuf_fields import LENGTH_DELIMITED, fields


def test_the_fields_of_a_message() -> None:
    data = TensorProto(dims=[300, 2], name="weights", double_data=[1.5]).SerializeToString()
    found = [*fields(data, 0, len(data))]
    assert [field.start for field in found[1:]] == [field.end for field in found[:-1]]
    (name,) = (field for field in found if field.number == TensorProto.NAME_FIELD_NUMBER)
    assert name.wire_type == LENGTH_DELIMITED
    assert data[name.value : name.end] == b"weights"


@pytest.mark.parametrize("data", [b"\x0a\x05ab", b"\x0a", b"\x00\x01", b"\x0b\x01", b"\xff" * 11])
def test_damaged_messages(data: bytes) -> None:
    with pytest.raises(ModelError, match="damaged"):
        [*fields(data, 0, len(data))]
