"""Decoders in ONNX that other tools exported, run as they are.

    interface     the inputs and outputs of a graph, by role
    inputs        what each input that is no cache is fed
    caches        KV caches and states, in the forms in which graphs return them
    graph         one graph: bind, run
    trial         short runs that show what the graphs can do
    engine        the engine and its sessions

A graph of `o2o.lower.onnx` has a simpler form, which `runtime_py.engines.onnx.engine` runs.
"""
