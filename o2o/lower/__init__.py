"""Lowering Circle to what a runtime executes: LiteRT (`litert`), onert (`onert`) and ONNX (`onnx`)."""
