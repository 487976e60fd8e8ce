"""The frame of a file: lengths and sizes survive packing; a damaged frame is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o2o.streams.framing import AT, LENGTH, Frame, packed_length, parse_frame

HEADER = AT + LENGTH


@given(
    st.integers(HEADER + 40, 1 << 40),
    st.integers(0, 1 << 40),
    st.lists(st.integers(0, 2**32 - 1), max_size=10),
)
def test_a_frame_says_what_was_packed(header: int, data: int, sizes: list[int]) -> None:
    frame = Frame(header, header + data, tuple(sizes))
    packed = frame.packed()
    assert len(packed) == packed_length(len(sizes))
    assert parse_frame(bytes(AT) + packed) == frame
    lengths = parse_frame(bytes(AT) + packed[:LENGTH])
    assert lengths == Frame(header, header + data), "of the beginning alone, the lengths"


@given(st.binary(max_size=64))
def test_what_is_no_frame_is_none(data: bytes) -> None:
    assert parse_frame(data) is None


@pytest.mark.parametrize("frame", [Frame(10, 100), Frame(200, 100), Frame(44, 100, (1, 2, 3))])
def test_a_frame_that_contradicts_itself_is_none(frame: Frame) -> None:
    assert parse_frame(bytes(AT) + frame.packed()) is None
