"""`bucket.kvcache.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from o2o.cli.arguments import number_list
from o2o.cli.text import counted, listed
from o2o.contract import role_of
from o2o.errors import ModelError, UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model, Signature, dims_of, shape_of
from o2o.rewriting.cache_buckets import add_cache_buckets, default_capacities, most_rows
from o2o.rewriting.matchers import MatchFailure
from o2o.signatures import buckets_of, capacity_of, find_decode

if TYPE_CHECKING:
    from o2o.check.interface import Expected, Tensors


class BucketKvcache(Filter):
    """Add buckets: decode signatures with smaller KV caches, which make short texts faster.

        decode: past_key_0 [1,2048,4,64]    =>    decode:      past_key_0 [1,2048,4,64]
                                                  decode_256:  past_key_0 [1,256,4,64]
                                                  decode_512:  past_key_0 [1,512,4,64]
                                                  decode_1024: past_key_0 [1,1024,4,64]

    A bucket is decode over the first rows of the caches. All share one set of weights. The runtime decodes
    in the smallest bucket that holds the text, and copies the rows into the next one when it is full. It adds
    buckets to a model without them when it loads the model. This filter stores them in the file, for other
    runtimes.
    Rows beyond a bucket's capacity must be neither read nor written at any position below it. The filter
    proves this: it computes masks and write positions at each position.
    ONNX: caches of fixed shapes (fix.shape.py --cache-length). In the file, buckets are branches. The number
    of rows that the caller passes selects one. Caches with a symbolic number of rows need no buckets.
    Refused: a model without decode or contract, and a decode that transforms the rows of its caches or
    depends on all of them.
    """

    name = "bucket.kvcache.py"
    purpose = "KV caches"
    input_formats = ALL_FORMATS
    usage_example = "bucket.kvcache.py --capacities 256,512 < model.tflite > bucketed.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--capacities",
            metavar="A,B",
            type=number_list,
            help="capacities of the buckets (default: 256,512,768,1024,1536,... up to the model's own)",
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        if args.capacities == []:
            raise UsageError("--capacities is empty: give capacities such as 256,512")

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        decode = find_decode(model)
        if decode is not None and (varying := _varying_cache(decode)) is not None:
            self.log(f"{varying} has as many rows as the caller passes: it needs no buckets")
            return False
        if decode is None or not (own := most_rows(decode)):
            raise ModelError(
                "no decode signature has KV caches in the o2o.contract: merge one with merge.circles.py"
            )
        if buckets := [signature.name for signature in buckets_of(model)]:
            raise ModelError(f"decode has buckets already: {listed(buckets)}")
        capacities = default_capacities(own) if args.capacities is None else sorted(set(args.capacities))
        if wrong := [rows for rows in capacities if not 0 < rows < own]:
            raise UsageError(
                f"--capacities: {wrong[0]} must be above 0 and below decode's own capacity {own}"
            )
        if not capacities:
            self.log(f"decode has a capacity of {own}: there is no smaller one to add")
            return False
        try:
            if model.format == "onnx":
                from o2o.raising.onnx_buckets import add_onnx_cache_buckets

                add_onnx_cache_buckets(model, decode, capacities)
            else:
                add_cache_buckets(model, decode, capacities)
        except MatchFailure as failure:
            raise ModelError(f"decode cannot be computed with fewer rows: {failure}") from None
        names = [f"{decode.name}_{rows}" for rows in capacities]
        self.log(f"added {listed(names)}; {decode.name} has {counted(capacity_of(decode), 'position')}")
        return True

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import unchanged

        expected = unchanged(models)
        (model,) = models
        decode = find_decode(model)
        if decode is None or _varying_cache(decode) is not None:
            return expected
        own = most_rows(decode)
        source = next(entry for entry in expected if entry.source == decode.name)
        for rows in default_capacities(own) if args.capacities is None else sorted(set(args.capacities)):
            inputs = _shortened(source.inputs, decode.inputs, rows)
            outputs = _shortened(source.outputs, decode.outputs, rows)
            expected.append(replace(source, name=f"{decode.name}_{rows}", inputs=inputs, outputs=outputs))
        return expected


def _varying_cache(decode: Signature) -> str | None:
    """A cache with a symbolic number of rows (ONNX); None if there is none."""
    for name, value in decode.inputs.items():
        role = role_of(value)
        dims = dims_of(value)
        if role is not None and role.is_cache and role.layout is not None and dims is not None:
            rows = dims[role.layout.index("T")]
            if isinstance(rows, str):
                return f"{name} [{','.join(map(str, dims))}]"
    return None


def _shortened(tensors: Tensors, values: Mapping[str, ir.Value], rows: int) -> Tensors:
    """`tensors` with `rows` cache rows at most."""
    changed = dict(tensors)
    for name, value in values.items():
        role = role_of(value)
        if role is not None and role.layout is not None:
            shape = list(shape_of(value))
            axis = role.layout.index("T")
            if shape[axis] > rows:
                shape[axis] = rows
                changed[name] = replace(changed[name], shape=tuple(shape))
    return changed


main = BucketKvcache.main
