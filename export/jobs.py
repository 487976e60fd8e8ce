"""Which graphs a package is made of, and what their files are called."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.silence_stderr import no_warnings
from o2o.errors import UsageError

if TYPE_CHECKING:
    from export.traced_cache import CacheForm
    from export.weights import WeightsForm, WeightsType
    from o2o.model import Model

PREFILL_LENGTHS = (64, 128, 256)  # those that a capacity has room for, where nothing else is asked for


@dataclass(frozen=True)
class Job:
    """One graph to export: T = `tokens` at a time onto `capacity` rows of cache (None: onto none)."""

    signature: str
    file: str
    tokens: int
    capacity: int | None
    cache: CacheForm = "static"

    def build(
        self,
        directory: str | os.PathLike[str],
        attn_implementation: str,
        weights: WeightsForm,
        dtype: WeightsType,
    ) -> Model:
        """The graph: see `export.build`, which takes seconds to import."""
        from export import build

        if self.signature != "decode":
            return build.prefill(directory, self.tokens, attn_implementation, self.capacity, weights, dtype)
        assert self.capacity is not None
        return build.decode(directory, self.capacity, self.cache, attn_implementation, weights, dtype)

    def export(
        self,
        directory: Path,
        folder: Path,
        attn_implementation: str,
        weights: WeightsForm,
        dtype: WeightsType,
        debug: bool = False,
    ) -> None:
        """Build it and write its file into `folder`; with `debug` warnings are shown."""
        from o2o import formats

        with contextlib.nullcontext() if debug else no_warnings():
            model = self.build(directory, attn_implementation, weights, dtype)
        formats.save(model, folder / self.file)


def jobs(
    max_length: int, prefill_lengths: Sequence[int] | None = None, cache: CacheForm = "concat"
) -> list[Job]:
    """The prefills, shortest first, and decode of a package for `max_length` tokens of context (S).

    prefill_lengths: how many tokens one prefill takes; each is a graph that goes on at any position. None:
    those of PREFILL_LENGTHS that fit; where none does, and for an empty sequence, one that takes all S
    tokens of a prompt from its beginning, the guide's.
    cache: in what form graphs take it. `concat` is for fuse.attention.py: decode joins the new row to S - 2
    others, and names of files that still want it end in `_`; `static` is to run as it is.

    Raises UsageError for lengths that make no package.
    """
    least = 3 if cache == "concat" else 1
    if max_length < least:
        raise UsageError(f"--max-length {max_length}: at least {least} with --cache {cache}")
    if prefill_lengths is None:
        prefill_lengths = [length for length in PREFILL_LENGTHS if length <= max_length]
    lengths = sorted(prefill_lengths)
    if len(set(lengths)) != len(lengths):
        raise UsageError(f"--prefill-lengths {','.join(map(str, lengths))}: a length twice")
    for length in lengths:
        if not 1 <= length <= max_length:
            raise UsageError(f"--prefill-lengths: {length} tokens do not fit into --max-length {max_length}")
    raw = "_" if cache == "concat" else ""
    prefills = [Job(f"prefill_{n}", f"prefill_{n}{raw}.circle", n, max_length) for n in lengths]
    decode = Job("decode", f"decode{raw}.circle", 1, max_length - (2 if raw else 0), cache)
    return [*(prefills or [Job("prefill", "prefill.circle", max_length, None)]), decode]
