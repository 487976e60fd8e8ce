"""`legalize.onert.py`."""

from __future__ import annotations

import argparse

from o2o.cli.text import counted, listed
from o2o.filters.base import Filter
from o2o.lower.onert import legalize
from o2o.model import Model


class LegalizeOnert(Filter):
    """Turn Circle into Circle that onert runs: one decode step, on its cpu backend.

        prefill: ...                                     (left out: onert runs subgraph 0)
        decode:  x -- ATTENTION (writes past_key_0)  =>  decode: x -- FULLY_CONNECTED - ROPE -+- present_key_0
                                                           past_key_0 --------- BATCH_MATMUL -+- SOFTMAX - ...

    ATTENTION becomes builtin operators that look at the cache and at the new row beside it, and write
    nothing: the new rows [1,K,1,H] come out, for the program that runs it to put at their position. Value
    caches are turned to [1,K,H,S] (BNHT in the contract), which onert multiplies with as they are. A
    DYNAMIC_UPDATE_SLICE of one row becomes a SELECT_V2, SPLIT_V a SLICE for each part. Normalisations
    are fused; FULLY_CONNECTED gets rows; int8 weights by row get one scale of 1 and theirs afterwards, as
    onert applies the first to all; tables and what DEQUANTIZE widens become float32.
    Refused, with the place: operators that onert lacks or computes wrong, in dtypes or ranks that it does
    not know; attention with a mask, or of several tokens; a cache that the contract does not tell; weights
    in int4 or in blocks; weights of over 2 GB, as onert crashes on what lies behind a FlatBuffer.
    """

    name = "legalize.onert.py"
    usage_example = "legalize.onert.py < model.circle > decode.circle"
    formats = ("circle",)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        done = legalize(model)
        if done.dropped:
            self.log(f"left out {listed(done.dropped)}: onert runs decode alone")
        self.log(f"{counted(done.before, 'operator')} became {done.after:,}")


main = LegalizeOnert.main
