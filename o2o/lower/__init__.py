"""Lowering of Circle for runtimes: LiteRT (`litert`), onert (`onert`) and ONNX (`onnx`)."""
