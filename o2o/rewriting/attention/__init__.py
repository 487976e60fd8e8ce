"""Recognising attention by its dataflow.

parts        finding: from a softmax up to q k', down to the result, and the parts between
proof        what each axis means on the way
causality    what a mask hides, at every position
tokens       what depends on one token's position alone
visibility   masks and positions become operands, or a reason
block        all of it, for one softmax
core         softmax(scale q k' + mask) v alone, without projections, caches and rotations
"""
