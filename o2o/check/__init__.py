"""`--check`: run a model before and after a filter and compare the outputs.

subject   a model on LiteRT, and what comparing needs to know of its inputs and outputs
compare   two models on LiteRT
onnx      a Circle model on LiteRT and its ONNX model on ONNX Runtime
"""

from o2o.check.compare import SEED, TOLERANCE, check
from o2o.check.subject import IoTensor, Subject

__all__ = ["SEED", "TOLERANCE", "IoTensor", "Subject", "check"]
