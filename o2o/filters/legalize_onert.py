"""`legalize.onert.py`."""

from __future__ import annotations

import argparse

from o2o.cli.text import counted, listed
from o2o.filters.base import Filter
from o2o.lower.onert import legalize
from o2o.model import Model


class LegalizeOnert(Filter):
    """Rewrite Circle for onert: one decode graph, for its cpu backend.

        prefill: ...                                     (removed: onert runs subgraph 0)
        decode:  x -- ATTENTION (writes past_key_0)  =>  decode: x -- FULLY_CONNECTED - ROPE -+- present_key_0
                                                           past_key_0 --------- BATCH_MATMUL -+- SOFTMAX - ...

    ATTENTION becomes builtin operators that read the cache and the new row, and write nothing. The new rows
    [1,K,1,H] are outputs, which the calling program stores at their position. Value caches get the layout
    [1,K,H,S] (BNHT in the contract), so that onert multiplies without a transpose.
    A DYNAMIC_UPDATE_SLICE of one row becomes SELECT_V2. SPLIT_V becomes a SLICE for each part. Norms are
    fused. FULLY_CONNECTED gets inputs of rank 2. Weights quantised by row get the scale 1 and a MUL by
    their scales, as onert applies the first scale to all rows. Tables, and what DEQUANTIZE widens, become
    float32.
    Refused: operators that onert lacks or computes wrong, with their place. Attention with a mask or of
    several tokens, a cache without a role, weights in int4 or in blocks, and weights of over 2 GB.
    """

    name = "legalize.onert.py"
    usage_example = "legalize.onert.py < model.circle > decode.circle"
    formats = ("circle",)

    def apply(self, model: Model, args: argparse.Namespace) -> None:
        done = legalize(model)
        if done.dropped:
            self.log(f"removed {listed(done.dropped)}: onert runs only decode")
        self.log(f"{counted(done.before, 'operator')} became {done.after:,}")


main = LegalizeOnert.main
