"""`bucket.kvcache.py`."""

from __future__ import annotations

import argparse

from o2o.cli.arguments import number_list
from o2o.cli.text import listed
from o2o.errors import ModelError, UsageError
from o2o.filters.base import Filter
from o2o.lower.litert.tuning import SMALLEST, doubling
from o2o.model import Model
from o2o.rewriting.cache_buckets import add_cache_buckets
from o2o.rewriting.matchers import MatchFailure
from o2o.signatures import buckets_of, capacity_of, find_decode


class BucketKvcache(Filter):
    """Add decode graphs of smaller capacities, so that short texts decode faster.

        decode: past_key_0 [1,2048,4,64]    =>    decode:      past_key_0 [1,2048,4,64]
                                                  decode_256:  past_key_0 [1,256,4,64]
                                                  decode_512:  past_key_0 [1,512,4,64]
                                                  decode_1024: past_key_0 [1,1024,4,64]

    Each new signature (a bucket) is decode over the first rows of the caches. All share one set of weights.
    The runtime decodes in the smallest bucket that holds the text, and copies the rows to the next when it
    is full. It makes such buckets itself; this filter stores them in the file, for other runtimes.
    Proven by computing masks and indices at every position below a capacity: no row beyond it is read or
    written.
    Refused: a model without decode or without a contract, and a decode whose caches are used in other ways.
    """

    name = "bucket.kvcache.py"
    usage_example = "bucket.kvcache.py --capacities 256,512 < model.tflite > bucketed.tflite"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--capacities",
            metavar="A,B",
            type=number_list,
            help=f"capacities of the new caches (default: {SMALLEST} and its doubles below that of decode)",
        )

    def check_arguments(self, args: argparse.Namespace) -> None:
        if args.capacities == []:
            raise UsageError("--capacities names no capacity: write 256,512")

    def apply(self, model: Model, args: argparse.Namespace) -> bool:
        decode = find_decode(model)
        if decode is None or not (own := capacity_of(decode)):
            raise ModelError("the contract has no decode with caches: merge prefill and decode first")
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
            raise ModelError(f"decode does not work with a smaller capacity: {reason}") from None
        names = [f"decode_{rows}" for rows in wanted]
        self.log(f"{listed(names)}, in addition to decode with a capacity of {own:,}")
        return True


main = BucketKvcache.main
