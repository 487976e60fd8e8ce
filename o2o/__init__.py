"""o2o: read, rewrite and write Circle and TFLite graphs. Unix filters over one IR, `onnx_ir`."""

from o2o import lazy_sympy

__version__ = "0.1.0"

lazy_sympy.install()
