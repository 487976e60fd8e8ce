"""Which operators LiteRT runs: those that it registers, from which version on.

Its schema knows more, for its own compiler. `tests/o2o/lower/test_registered.py` asks LiteRT itself.
"""

from __future__ import annotations

from o2o.formats.schema import TFLITE

MINIMUM_VERSIONS = {"BROADCAST_TO": 2}  # where that is not 1

_STABLEHLO = {  # of these; all others are not registered
    *("STABLEHLO_ADD", "STABLEHLO_AND", "STABLEHLO_CASE", "STABLEHLO_COMPOSITE", "STABLEHLO_GATHER"),
    *("STABLEHLO_MAXIMUM", "STABLEHLO_MINIMUM", "STABLEHLO_MULTIPLY", "STABLEHLO_PAD", "STABLEHLO_SCATTER"),
    *("STABLEHLO_REDUCE_WINDOW", "STABLEHLO_RNG_BIT_GENERATOR", "STABLEHLO_SHIFT_LEFT"),
}
_OTHERS = {"CALL", "CONCAT_EMBEDDINGS", "CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"}


def is_registered(op_type: str) -> bool:
    """Whether LiteRT has the builtin operator `op_type`."""
    if op_type not in TFLITE.operator_codes or op_type in _OTHERS:
        return False
    return op_type in _STABLEHLO or not op_type.startswith("STABLEHLO_")
