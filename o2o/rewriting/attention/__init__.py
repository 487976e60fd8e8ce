"""Attention, matched by its data flow.

`parts` finds the parts of a block, from a softmax up to q k' and down to the result. `proof` follows named
axes through the block. `causality` proves what a mask hides, at every position; `token_axis` proves that a
row of a mask depends on one token's position alone. `visibility` makes masks and positions operands of
ATTENTION. `match` puts all this together for one softmax, and `rule` is the rewrite rule.

`sdpa` matches softmax(scale q k' + mask) v alone, without projections, caches and rotations.
"""
