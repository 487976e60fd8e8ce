"""The JSON Schemas of a model file's metadata, and a check of all metadata that tests write."""

from __future__ import annotations

import functools
import importlib.resources
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from o2o import contract, history
from o2o.model import Model

ENTRY = {"filter": "before.py", "arguments": [], "version": "0.1.0", "input": "sha256:" + "0" * 64}
"""An entry of a history."""


def validator(name: str) -> Any:
    """Return a jsonschema validator of `o2o/NAME.schema.json`."""
    from jsonschema import Draft202012Validator

    text = (importlib.resources.files("o2o") / f"{name}.schema.json").read_text()
    return Draft202012Validator(json.loads(text))


@contextmanager
def checked() -> Iterator[None]:
    """Within the block, a contract or a history is written only if it matches its schema."""
    contracts, histories = validator("contract"), validator("history")
    contract_of, dumps = contract.contract_of, history.dumps

    @functools.wraps(contract_of)
    def checked_contract_of(model: Model) -> dict[str, Any]:
        result = contract_of(model)
        if result["signatures"]:
            contracts.validate(result)
        return result

    @functools.wraps(dumps)
    def checked_dumps(entries: list[dict[str, Any]]) -> bytes | None:
        data = dumps(entries)
        if data is not None:
            histories.validate(json.loads(data))
        return data

    with (
        patch.object(contract, "contract_of", checked_contract_of),
        patch.object(history, "dumps", checked_dumps),
    ):
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Within the block, a test may write wrong metadata on purpose."""
    with (
        patch.object(contract, "contract_of", inspect.unwrap(contract.contract_of)),
        patch.object(history, "dumps", inspect.unwrap(history.dumps)),
    ):
        yield
