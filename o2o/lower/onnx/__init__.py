"""Circle's decode graph -> ONNX, standard or as ONNX Runtime likes it.

lowering     which graph, its ends, and each of its operators
tokens       one token's graph, done for T tokens
recognising  norms and rotations that exporters scatter
operators    Circle's plain operators
attention    ATTENTION and `o2o.causal_attention` with their caches
weights      matrices and what their stored numbers stand for
standard     how the parts are spelled with the standard's operators
contrib      and with ONNX Runtime's own
emitting     building nodes and constants
checking     proof by running
writing      files: weights streamed, beside the graph where they are large
"""

from o2o.formats.onnx_writer import stream, write
from o2o.lower.onnx.lowering import FORMS, lower_to_onnx

__all__ = ["FORMS", "lower_to_onnx", "stream", "write"]
