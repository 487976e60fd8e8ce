"""Circle's decode graph to ONNX, in standard operators or in ONNX Runtime's own.

    lowering          which graph, its inputs and outputs, and the order of its operators
    per_token         the graph of one token, for T tokens
    operators         all operators without a module of their own
    layout            operators that move elements
    norms             RMSNorm and LayerNorm, also decomposed
    fused_activation  activations that are fused into an operator
    rotation          RoPE in any form
    attention         `o2o.attention` with its caches
    cached_attention  the operands of attention, as a form takes them
    weights           matrices and their quantization
    standard_form     the form `standard`
    ort_form          the form `ort`
    builder           building nodes and constants

To lower another operator, add an entry to `RULES` in `operators`.
"""

from o2o.lower.onnx.lowering import FORMS, lower_to_onnx
from o2o.lower.onnx.standard_form import MAX_BLOCK

__all__ = ["FORMS", "MAX_BLOCK", "lower_to_onnx"]
