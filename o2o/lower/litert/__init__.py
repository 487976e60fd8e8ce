"""Circle to TFLite that LiteRT runs.

    lowering          the pass over a model, and the table of operators that it lowers
    attention         ATTENTION and `o2o.attention`
    sdpa              scaled dot-product attention, all scores at once
    flash_attention   the same in blocks of queries and keys
    rms_norm, rope    RMS_NORM and ROPE
    gelu              GELU that is written in several operators
    composites        attention and norms wrapped in STABLEHLO_COMPOSITE
    draft_verifiers   signatures for speculative decoding
    tuning            a lowered model for speed: cache layout, buckets, prefills without logits

To lower another operator, add a module for it and an entry to the table in `lowering`.
"""

from o2o.lower.litert.lowering import lower_to_litert

__all__ = ["lower_to_litert"]
