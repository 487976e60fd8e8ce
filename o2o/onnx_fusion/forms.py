"""The forms of fused ONNX models, and their floating-point types. The filters import this module alone."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

Form = Literal["standard", "ort"]
"""ONNX's own operators, or ONNX Runtime's."""
CONTRIB = "com.microsoft"
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOATS = (ir.DataType.FLOAT, *HALF)
