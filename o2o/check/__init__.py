"""`--check`: run a model before and after a filter and compare the results.

interface          what a filter may change: signatures, inputs and outputs of the result
runner             a model on an engine: its inputs and outputs, and what they hold
derived_roles      roles of caches and positions that no contract names
role_behavior      roles of a contract against the behavior of the model
litert_runner      a model on LiteRT
reference_runner   a model by the operators' meaning in numpy, for operators that LiteRT lacks
engine_process     the process that runs an engine, which may crash
engine_worker      what that process executes
feeds              random inputs
checkpoint         weights against the files of a checkpoint
small_tables       small embeddings, with which a wrong epsilon is seen
activation_rounding  a float model that rounds activations, as kernels of int8 weights do
constants          constants of the same name in two models
compare            two models
onnx               a Circle model and its ONNX model on ONNX Runtime

This package imports nothing: `engine_worker` must start quickly.
"""
