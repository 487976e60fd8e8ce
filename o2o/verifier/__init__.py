"""Verifier: static rules that a model file must keep, each with a stable code.

`issue` has the codes, and `verify` runs all rules. `tables` checks the numbers in the file's tables. `graphs`
checks references between operators and tensors. `operators` checks shapes, dtypes and versions. `roles`
checks the contract. `engines` reports what an engine lacks, and `tico` asks Samsung's verifier.

A new rule needs a code in `issue`, which never changes its meaning, and a call in `verify`.
"""
