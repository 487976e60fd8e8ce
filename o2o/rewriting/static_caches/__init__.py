"""KV caches that grow by concatenation become static caches with a position (ONNX).

    past [1,K,P,H] -- Concat(new [1,K,T,H]) -- present [1,K,P+T,H]
                              =>
    past [1,K,S,H] -- TensorScatter(new, position) -- present [1,K,S,H]

A graph with growing caches derives numbers from the length P of its past: positions, masks, shapes. Each such
number becomes one of two things. Where it is a size, P + T becomes the capacity S. Where it is a number among
numbers, P becomes the input `position`. `instances` computes all these numbers for three lengths P.
`past_numbers` compares them, and says what each value becomes. `conversion` rewrites the graph.
"""
