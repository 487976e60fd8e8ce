"""`bucket.kvcache.py`."""

from __future__ import annotations

import argparse

from o2o.cli.arguments import number_list
from o2o.cli.text import counted, listed
from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.lower.litert.tuning import SMALLEST, doubling
from o2o.model import Model
from o2o.rewriting.cache_buckets import add_cache_buckets
from o2o.rewriting.matchers import MatchFailure
from o2o.signatures import buckets_of, capacity_of, find_decode


class BucketKvcache(Filter):
    """Give decode caches of several capacities, so that a short text does not pay for a long context.

        decode: past_key_0 [1,2048,4,64]    =>    decode:      past_key_0 [1,2048,4,64]
                                                  decode_256:  past_key_0 [1,256,4,64]
                                                  decode_512:  past_key_0 [1,512,4,64]
                                                  decode_1024: past_key_0 [1,1024,4,64]

    Each new signature is decode over the first rows of the caches; all share one set of weights. The runtime
    goes on in the smallest that holds the text, and copies the rows to the next when it is full. It does so
    by itself for a model without them; this filter puts them into the file, for other runtimes.
    Rows beyond the capacity must not be seen or written at any position below it: that is proven by computing
    masks and places at each. Refused: a model without decode or without a contract; a decode in which the
    rows of the caches become something else, or that computes with all of them.
    """

    name = "bucket.kvcache.py"
    usage_example = "bucket.kvcache.py --capacities 256,512 < model.tflite > bucketed.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--capacities",
            metavar="A,B",
            type=number_list,
            help=f"positions of the new caches ({SMALLEST}, and twice as many each, below the model's own)",
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        if args.capacities == []:
            raise UsageError("--capacities names no capacity: write 256,512")

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        decode = find_decode(model)
        if decode is None or not (own := capacity_of(decode)):
            raise ModelError("there is no decode whose caches the contract tells: merge one with the prefill")
        if buckets := [signature.name for signature in buckets_of(model)]:
            raise ModelError(f"decode has buckets already: {listed(buckets)}")
        wanted = doubling(own) if args.capacities is None else sorted(set(args.capacities))
        if wrong := [rows for rows in wanted if not 0 < rows < own]:
            raise UsageError(f"--capacities: {wrong[0]} is not between 0 and the {own} of decode")
        if not wanted:
            self.log(f"decode has a capacity of {own}: there is no smaller one to add")
            return False
        try:
            add_cache_buckets(model, decode, wanted)
        except MatchFailure as reason:
            raise ModelError(f"decode cannot do with fewer rows: {reason}") from None
        names = [f"decode_{rows}" for rows in wanted]
        self.log(f"{listed(names)}, besides decode of {counted(own, 'position')}")
        return True


main = BucketKvcache.main
