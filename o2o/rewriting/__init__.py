"""Graph rewriting: passes, rewrite rules, and the helpers that these are built from.

A pass is a function that changes a graph (or a model) in place and returns the number of changes: 0 means
unchanged. A pass with more to report returns a small dataclass. Several passes have a counterpart in
`onnx_ir.passes.common`; each docstring says why this project has its own.

A rewrite rule (`rewrite_rule`) matches a group of operators and inserts one operator in their place. A rule
that does not match raises `matchers.MatchFailure` with the reason.
"""
