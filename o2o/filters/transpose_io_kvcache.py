"""`transpose.io.kvcache.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import onnx_ir as ir

from o2o.contract import Layout, role_of
from o2o.errors import UsageError
from o2o.filters.base import ALL_FORMATS, Filter
from o2o.model import Model, dims_of
from o2o.operators.attention import takes_as_cache
from o2o.rewriting.cache_layout import transpose_caches
from o2o.rewriting.selectors import entry_graphs

if TYPE_CHECKING:
    from o2o.check.interface import Expected, Tensors


class TransposeIoKvcache(Filter):
    """Transpose the KV caches: tokens before heads (BTNH), or heads before tokens (BNTH).

        past_key_0 [1,16,32,4] BNTH -- ATTENTION    =>   past_key_0 [1,32,16,4] BTNH -- ATTENTION
        past_key_0 BNTH -- CONCATENATION            =>   past_key_0 BTNH -- TRANSPOSE -- CONCATENATION
        ADD -- present_key_0 BNTH                   =>   ADD -- TRANSPOSE -- present_key_0 BTNH

    Applies to every graph: to cache inputs and key/value outputs by the contract, and to the caches of
    ATTENTION. ATTENTION takes either layout; the contract records which. A DYNAMIC_UPDATE_SLICE that writes a
    cache in place still does. All other users read the cache through a TRANSPOSE.
    Refused: a model with neither ATTENTION nor caches in its contract; caches quantized by channel.
    Older name: transpose.io.kcache.py.
    """

    name = "transpose.io.kvcache.py"
    purpose = "KV caches"
    input_formats = ALL_FORMATS
    usage_example = "transpose.io.kvcache.py < in.circle > out.circle"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--to", choices=get_args(Layout), default="BTNH", help="the new layout (default: %(default)s)"
        )

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        results = [transpose_caches(model, graph, args.to) for graph in entry_graphs(model, None)]
        transposed, total = (sum(counts) for counts in zip(*results, strict=True))
        if not total:
            raise UsageError(
                "no input or output is a KV cache: the model has no contract with caches and no ATTENTION"
            )
        self.log(f"transposed {transposed} of {total} key/value tensors to {args.to}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        return transposed(models, args.to)


def transposed(models: Sequence[Model], layout: Layout) -> Expected:
    """Describe the interface of models whose caches have another layout, for `--check`.

    Args:
        models: The input.
        layout: The new layout.

    Returns:
        Each signature, with the new shapes of its caches.
    """
    from o2o.check.interface import signature_of, unchanged

    def changed(tensors: Tensors, values: Mapping[str, ir.Value]) -> Tensors:
        new = dict(tensors)
        for name, value in values.items():
            role = role_of(value)
            dims = dims_of(value) or ()
            if role is not None and role.layout is not None and len(dims) == 4:
                shape = tuple(dims[role.layout.index(axis)] for axis in layout)
                static = tuple(dim for dim in shape if isinstance(dim, int))
                is_static = len(static) == len(shape)
                new[name] = replace(
                    tensors[name], shape=static if is_static else None, is_reshaped=not is_static
                )
            elif any(takes_as_cache(use.node, use.idx) for use in value.uses()):
                new[name] = replace(tensors[name], is_reshaped=True)
        return new

    expected = []
    for entry in unchanged(models):
        source = signature_of(models, entry)
        inputs = changed(entry.inputs, source.inputs)
        expected.append(replace(entry, inputs=inputs, outputs=changed(entry.outputs, source.outputs)))
    return expected


main = TransposeIoKvcache.main
