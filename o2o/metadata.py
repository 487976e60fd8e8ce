"""Versioned JSON metadata of a model file: `o2o.contract`, `o2o.weights`, `o2o.quantization`, `o2o.history`.

Each is an object with a number `version`. Readers refuse a newer version than they know.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from o2o.errors import ModelError


class NewerVersion(ModelError):
    """The metadata has a newer version than this code can read."""


def parse(name: str, text: str | bytes, version: int) -> dict[str, Any]:
    """Parse a metadata entry.

    Args:
        name: Its name in the file, for messages.
        text: The JSON text.
        version: The newest version that this code can read.

    Returns:
        The JSON object.

    Raises:
        NewerVersion: Its version is newer.
        ModelError: The text is damaged.
    """
    with reports_damage(name):
        content = json.loads(text)
        if content["version"] > version:
            raise NewerVersion(
                f"its {name} has version {content['version']}; this o2o knows {version}: update o2o"
            )
        return dict(content)


@contextlib.contextmanager
def reports_damage(name: str) -> Iterator[None]:
    """Turn the errors of reading malformed JSON content within the block into a ModelError.

    Args:
        name: The metadata's name, for the message.

    Yields:
        Nothing.

    Raises:
        ModelError: The content is malformed.
    """
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ModelError(f"its metadata {name} is damaged: {error}") from error
    except KeyError as error:
        raise ModelError(f"its metadata {name} is damaged: it has no {error}") from error
    except (TypeError, IndexError, AttributeError) as error:
        raise ModelError(f"its metadata {name} is damaged: a value has a wrong type or length") from error
