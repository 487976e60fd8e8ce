"""runtime_py: run a package (a model with its tokenizer) and print what it writes.

    package -> contract -> engine -> tokens -> text

Shapes are written with these letters: B batch, T tokens, S cache capacity, N query heads, K key/value
heads, H head dimension, D model dimension, V vocabulary; P is the length of a prompt.
"""
