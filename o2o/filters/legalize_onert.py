"""`legalize.onert.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from o2o.cli.text import counted, listed
from o2o.contract import role_of
from o2o.filters.base import Filter
from o2o.lower.onert import lower_to_onert
from o2o.model import Model
from o2o.signatures import decode_of

if TYPE_CHECKING:
    from o2o.check.interface import Expected


class LegalizeOnert(Filter):
    """Turn Circle into Circle that onert runs: one decode step, on its cpu backend.

        prefill: ...                                     (left out: onert runs subgraph 0)
        decode:  x -- ATTENTION (writes past_key_0)  =>  decode: x -- FULLY_CONNECTED - ROPE -+- present_key_0
                                                           past_key_0 --------- BATCH_MATMUL -+- SOFTMAX - ...

    ATTENTION becomes builtin operators that read the cache and the new row, and write nothing. The new rows
    [1,K,1,H] are outputs: the runtime writes them into the caches. Value caches become [1,K,H,S] (BNHT in the
    contract), which onert multiplies without a transpose. A DYNAMIC_UPDATE_SLICE of one row becomes a
    SELECT_V2. A SPLIT_V becomes one SLICE for each part. RMSNorm is fused. FULLY_CONNECTED gets an input
    [rows, D]. Scales per row are applied after the multiplication, because onert applies the first scale to
    all rows. Tables and constants of DEQUANTIZE become float32.
    Refused, with the place: operators, dtypes and ranks that onert lacks or computes incorrectly. Attention
    is refused if it has a mask that is not proven to be causal with a window or ALiBi slopes, several tokens,
    or a cache without a role in the contract. Weights are refused in int4, with scales by block, or over
    2 GB: onert crashes on data behind a FlatBuffer.
    """

    name = "legalize.onert.py"
    purpose = "Convert to another format or runtime"
    usage_example = "legalize.onert.py < model.circle > decode.circle"
    input_formats = ("circle",)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        summary = lower_to_onert(model)
        if summary.dropped:
            self.log(f"removed {listed(summary.dropped)}: onert runs only decode")
        self.log(f"{counted(summary.before, 'operator')} became {summary.after:,}")

    def expected(self, models: Sequence[Model], args: argparse.Namespace) -> Expected:
        from o2o.check.interface import signature_of, unchanged

        (model,) = models
        decode = decode_of(model).name
        expected = []
        for entry in unchanged(models):
            if entry.name != decode:
                continue
            source = signature_of(models, entry)
            inputs, outputs = (
                {
                    name: replace(tensor, is_reshaped=role_of(values[name]) is not None)
                    for name, tensor in tensors.items()
                }
                for tensors, values in ((entry.inputs, source.inputs), (entry.outputs, source.outputs))
            )
            expected.append(replace(entry, inputs=inputs, outputs=outputs, is_ordered=False))
        return expected


main = LegalizeOnert.main
