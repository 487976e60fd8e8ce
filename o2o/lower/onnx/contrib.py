"""ONNX as ONNX Runtime likes it best: with its own operators, of the domain com.microsoft."""

from __future__ import annotations

from typing import ClassVar

from o2o.lower.onnx.emitting import CONTRIB
from o2o.lower.onnx.standard import Standard


class Contrib(Standard):
    """How the parts of a model are spelled with ONNX Runtime's operators."""

    name = "ort"
    opsets: ClassVar[dict[str, int]] = {"": 24, CONTRIB: 1}
