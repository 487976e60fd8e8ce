"""JSON files of a checkpoint, with a table of the types that their keys must have."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from o2o.errors import ModelError
from runtime_py.text.files import Place

LONGEST_VALUE = 60
"""Characters of a wrong value in an error message."""


_LONE_SURROGATE = re.compile("[\\ud800-\\udfff]")  # JSON may escape one; no library encodes it


@dataclass(frozen=True)
class Type:
    """A type of JSON values.

    Attributes:
        names: Its name in error messages, such as `a string`; several for a choice of types.
        accepts: Whether a value has the type.
    """

    names: tuple[str, ...]
    accepts: Callable[[Any], bool]

    @property
    def name(self) -> str:
        *names, last = self.names
        return f"{', '.join(names)} or {last}" if names else last

    def __or__(self, other: Type) -> Type:
        return Type(self.names + other.names, lambda value: self.accepts(value) or other.accepts(value))


NULL = Type(("null",), lambda value: value is None)
TEXT = Type(("a string",), lambda value: isinstance(value, str))
FLAG = Type(("true", "false"), lambda value: isinstance(value, bool))
NUMBER = Type(
    ("a number",),
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value == value,
)
NATURAL = Type(
    ("an integer from 0",),
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)


def list_of(item: Type) -> Type:
    """Return the type of the lists of a type.

    Args:
        item: The type of the elements.

    Returns:
        The type.
    """
    return Type(
        (f"a list (each element {item.name})",),
        lambda value: isinstance(value, list) and all(map(item.accepts, value)),
    )


def object_of(item: Type) -> Type:
    """Return the type of the objects with values of a type, under any keys.

    Args:
        item: The type of the values.

    Returns:
        The type.
    """
    return Type(
        (f"an object (each value {item.name})",),
        lambda value: isinstance(value, dict) and all(map(item.accepts, value.values())),
    )


def read_json(path: Place, types: Mapping[str, Type] | None = None) -> dict[str, Any]:
    """Read a JSON file.

    Args:
        path: The file.
        types: The type of the values under each key. A key may be a pattern, such as `*_token`. The first
            entry that matches decides; a key that matches none may have any value.

    Returns:
        The object in it; an empty one when there is no such file.

    Raises:
        ModelError: The file is not JSON, not an object, or a value has the wrong type.
        OSError: The system cannot read the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder, not a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    if surrogate := _LONE_SURROGATE.search(json.dumps(content, ensure_ascii=False)):
        raise ModelError(f"{path} has the lone surrogate U+{ord(surrogate[0]):X}: it is not Unicode text")
    for key, value in content.items():
        pattern = next((pattern for pattern in types or () if fnmatch.fnmatchcase(key, pattern)), None)
        if types and pattern and not types[pattern].accepts(value):
            raise ModelError(f"{path}: {key} must be {types[pattern].name}, not {_short(value)}")
    return content


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
