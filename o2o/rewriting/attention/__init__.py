"""Attention, matched by its data flow: scattered operators to `o2o.attention`, and this to ATTENTION.

To the core: `scores` follows a softmax up to q k', and down to the product with v. `sdpa` reads the axes of
both products, in any layout. `mask_operand` makes one operand of all masks and biases. `mask_proof` proves
what it means. The rules are `core_rule` and `mask_rule`.

To ATTENTION: `parts` finds projections, rotations and cache updates around a core. `proof` follows named axes
through them, `visibility` makes masks and positions operands. `match` puts this together for one core, and
`rule` is the rewrite rule.

`causality` computes masks and positions at every position. `token_axis` proves that a row of a mask depends
on one token's position alone. `proofs` shares results between layers.
"""
