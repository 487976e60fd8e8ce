"""`--check`: run a model before and after a filter and compare the outputs.

litert_runner   a model on LiteRT, with shape, dtype and role of its inputs and outputs
compare         two models on LiteRT
onnx            a Circle model on LiteRT and its ONNX model on ONNX Runtime
"""

from o2o.check.compare import SEED, TOLERANCE, check
from o2o.check.litert_runner import IoTensor, LiteRtRunner

__all__ = ["SEED", "TOLERANCE", "IoTensor", "LiteRtRunner", "check"]
