"""Fusions on ONNX graphs: matched on a twin of Circle's operators, applied to the ONNX graph.

    sizes      a number for each symbolic dimension, which no other dimension has
    twin       the graph raised with these sizes (`o2o.raising`), and the ONNX value of each of its values
    rule       `OnnxRule`: match on the twin, prove, insert ONNX's operator
    rms_norm, rotation, attention, bmm_const    the rules

The rules of `o2o.rewriting` that match Circle's graphs match the twin. Here is only what is ONNX's own: which
operator stands for a match, and its operands.
"""
