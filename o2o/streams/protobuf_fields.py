"""Fields of a protobuf message, by their numbers alone: nothing is parsed or copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from o2o.errors import ModelError

LENGTH_DELIMITED = 2
"""The wire type of messages, strings and bytes."""


class Field(NamedTuple):
    """A field of a message: its number and wire type, and the bytes of the whole field and of its value."""

    number: int
    wire_type: int
    start: int
    value: int
    end: int


def fields(data: memoryview | bytes, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of a message.

    Args:
        data: Bytes that hold the message.
        start: Its first byte.
        end: The byte behind it.

    Yields:
        Its fields in order.

    Raises:
        ModelError: The message is truncated or damaged.
    """
    position = start
    while position < end:
        tag, value = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == LENGTH_DELIMITED:
            size, value = _varint(data, value, end)
            following = value + size
        elif wire_type == 0:
            _, following = _varint(data, value, end)
        elif wire_type in (1, 5):
            following = value + (8 if wire_type == 1 else 4)
        else:
            raise ModelError(f"damaged: byte {position} begins no field of a message")
        if following > end or number == 0:
            raise ModelError(f"truncated or damaged: the field at byte {position} ends behind its message")
        yield Field(number, wire_type, position, value, following)
        position = following


def _varint(data: memoryview | bytes, position: int, end: int) -> tuple[int, int]:
    """A number, and the position behind it."""
    number = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
        shift += 7
    raise ModelError(f"truncated or damaged: a number at byte {position} has no end")
