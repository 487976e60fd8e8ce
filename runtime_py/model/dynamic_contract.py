"""The contract of a graph that takes any number of tokens: one signature serves as prefill and as decode.

In its shapes, "T" stands for the number of tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from o2o.contract import METADATA_NAME
from o2o.errors import ModelError
from runtime_py.model.contract import Contract

LENGTH = "T"


def parse(told: str) -> tuple[Contract, bool]:
    """The contract of such a graph, of which `told` is the JSON, as it is for one token; and whether there
    are logits of every token, not of the last alone.

    It is checked as a decode and as a prefill. Raises ModelError.
    """
    try:
        contract: dict[str, Any] = json.loads(told)
        decode = contract.get("signatures", {}).get("decode")
        if decode is None:
            return Contract.parse(contract), False  # which says what is missing
        follows = {
            end["role"]: LENGTH in end["shape"]
            for end in (*decode["inputs"], *decode["outputs"])
            if "role" in end
        }
        one = {
            ends: [
                {**end, "shape": [1 if size == LENGTH else size for size in end["shape"]]}
                for end in decode[ends]
            ]
            for ends in ("inputs", "outputs")
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the model's {METADATA_NAME} is damaged: {error!r}") from error
    if not follows.get("tokens"):
        raise ModelError("the model takes a fixed number of tokens: make it with lower.onnx.py")
    return Contract.parse({"signatures": {"decode": one, "prefill": one}}), follows.get("logits", False)


def contract_of_onnx(file: Path) -> Contract:
    """That of the ONNX model in `file`, see `parse`. Raises ModelError."""
    import onnx_ir as ir

    contract, _ = parse(ir.load(file).metadata_props.get(METADATA_NAME, "{}"))
    return contract
