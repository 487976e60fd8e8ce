"""Attention, matched by its data flow.

parts        the parts of a block: from a softmax up to q k', and down to the result
proof        named axes through the block
causality    what a mask hides, at every position
token_axis   whether each row of a mask depends on one token's position alone
visibility   masks and positions as operands of ATTENTION
block        a whole block around one softmax
rule         the rewrite rule that fuses blocks into ATTENTION
sdpa         softmax(scale q k' + mask) v alone, without projections, caches and rotations
"""
