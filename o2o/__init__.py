"""o2o: read, rewrite and write Circle and TFLite graphs, as Unix filters over one IR (`onnx_ir`)."""

from o2o.lazy_sympy import import_onnx_ir

__version__ = "0.1.0"

import_onnx_ir()
