"""`window.kvcache.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.text import counted
from o2o.contract import Slot, role_of
from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.model import Model, shape_of
from o2o.rewriting.matchers import MatchFailure
from o2o.rewriting.window_caches import INPUT, WindowLayers, shrink_window_caches, window_layers

if TYPE_CHECKING:
    from o2o.check.interface import Expected, Tensors


class WindowKvcache(Filter):
    """Let the KV caches of layers with a sliding window hold the window's rows only.

        decode: past_key_0 [1,1,32768,256]    =>    decode: past_key_0 [1,1,1024,256], window_row [1]

    A query of such a layer sees the last W keys. So R rows are enough: W - 1, and one for each token of a
    run. Row r holds position b + r. The runtime chooses b, and passes the row of the first token as the input
    `window_row`. When a run needs a row beyond R, it first moves the last rows to the front. The contract has
    `capacity`, the positions of a text, for each of these caches.
    A text can go back by the rows that are left; to go back further, the runtime reads it again. So by
    default caches stay full unless R is half their capacity or less.
    Other runtimes do not know `window_row`: use this filter before lower.litert.py, for packages of this
    project. raise.circle.py gives a lowered model `o2o.attention` again.
    Caches stay full where attention has a mask operand besides its window, or other operators read them, too.
    """

    name = "window.kvcache.py"
    purpose = "KV caches"
    usage_example = "window.kvcache.py < full.circle > model.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--rows",
            metavar="R",
            type=int,
            help="rows of each window cache (default: the window, two runs of the longest prefill, and "
            "not fewer than min(window, 512) more)",
        )

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        try:
            of = window_layers(model)
            if of is None:
                self.log("no layer with a full KV cache has a window: nothing to do")
                return False
            rows = _rows(of, args)
            if rows is None:
                self.log(
                    f"windows of {of.window} need {of.default_rows} rows of {of.capacity}: caches stay full"
                )
                return False
            shrink_window_caches(model, rows)
        except MatchFailure as failure:
            raise ModelError(f"the KV caches cannot be cut to their windows: {failure}") from None
        layers = counted(len(of.layers), "layer")
        self.log(f"{layers} with windows of {of.window}: {rows} rows in place of {of.capacity}")
        return True

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import ExpectedTensor, signature_of, unchanged

        (model,) = models
        expected = unchanged(models)
        of = window_layers(model)
        rows = _rows(of, args) if of is not None else None
        if of is None or rows is None:
            return expected
        slots = {(kind, layer) for kind in ("key", "value") for layer in of.layers}
        changed = []
        for entry in expected:
            source = signature_of(models, entry)
            inputs = _cut(entry.inputs, source.inputs, slots, of.capacity, rows)
            outputs = _cut(entry.outputs, source.outputs, slots, of.capacity, rows)
            if inputs != entry.inputs:
                named: Tensors = {}
                for name, tensor in inputs.items():
                    named[name] = tensor
                    role = role_of(source.inputs[name])
                    if role is not None and role.kind == "position":
                        named[INPUT] = ExpectedTensor(name, gets_role=True)
                inputs = named
            changed.append(replace(entry, inputs=inputs, outputs=outputs))
        return changed


def _rows(of: WindowLayers, args: argparse.Namespace) -> int | None:
    """The rows of a window cache; None if full caches are better."""
    if args.rows is None:
        return of.default_rows if of.pays else None
    if not of.smallest <= args.rows < of.capacity:
        raise UsageError(
            f"--rows {args.rows}: windows of {of.window} and runs of {counted(of.tokens, 'token')} need "
            f"{of.smallest} rows or more, and fewer than the {of.capacity} of a full cache"
        )
    return int(args.rows)


def _cut(
    tensors: Tensors, values: Mapping[str, ir.Value], slots: set[Slot], capacity: int, rows: int
) -> Tensors:
    """`tensors` with `rows` rows in the caches of `slots` that have `capacity`."""
    changed = dict(tensors)
    for name, value in values.items():
        role = role_of(value)
        if role is None or role.layout is None or role.slot not in slots:
            continue
        shape, axis = list(shape_of(value)), role.layout.index("T")
        if shape[axis] == capacity:
            shape[axis] = rows
            changed[name] = replace(changed[name], shape=tuple(shape))
    return changed


main = WindowKvcache.main
