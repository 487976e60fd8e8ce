"""Options of an engine, built once from a command line or from keyword arguments and passed through."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from o2o.errors import UsageError
from o2o.streams.disk_cache import DiskCache, user_cache

AUTO = "auto"
"""The engine name that stands for the measured fastest installed one."""

MAX_THREADS = 1024
"""More threads than this can exhaust the system before an engine runs."""


@dataclass(frozen=True)
class EngineOptions:
    """How to load a model.

    Attributes:
        engine: A name of `runtime_py.engines.registry.ENGINES`, or `AUTO`.
        threads: Number of threads; None for the measured fastest.
        buckets: Capacities of additional decode graphs, each below S; None for the engine's default.
        all_logits: Whether prefills return the logits of each token, for scoring. A text is then read fast by
            `EngineSession.logits`, and generated no faster, and slower on LiteRT.
        speculate: Whether texts are generated with speculative decoding where that is faster
            (`runtime_py.generation.speculation`).
        rounded_drafts: Whether drafts are also used where an engine rounds the logits of several tokens
            otherwise than those of one. Texts may then differ from those without drafts. ONNX Runtime also
            gets int8 weights in blocks that make drafts exact. Decode steps and prompts are slower then.
        measures: Whether engines and numbers of threads may be measured at the first load of a model
            (`runtime_py.engines.speed_trial`). Otherwise, and without `disk_cache`, the order of preference
            decides.
        compile_all: Whether decode, and prefill at the begin of a text, are compiled at once. Then the first
            run of each takes no longer than others. Otherwise LiteRT compiles each when it is first used.
        disk_cache: Where prepared models and measured speeds are stored for the next load; None to store
            nothing.
        debug: Whether the runtime's own log goes to stderr.
        log: Called with one line when something slow happens or fails.

    Raises:
        UsageError: `threads` or `buckets` has another type or is out of range.
    """

    engine: str = AUTO
    threads: int | None = None
    buckets: Sequence[int] | None = None
    all_logits: bool = False
    speculate: bool = True
    measures: bool = True
    compile_all: bool = False
    rounded_drafts: bool = False
    disk_cache: DiskCache | None = field(default_factory=user_cache)
    debug: bool = False
    log: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        if self.threads is not None and not _is_count(self.threads, MAX_THREADS):
            raise UsageError(f"threads is {self.threads!r}: it must be an integer from 1 to {MAX_THREADS}")
        buckets = () if self.buckets is None else self.buckets
        if not isinstance(buckets, list | tuple) or not all(map(_is_count, buckets)):
            raise UsageError(
                f"buckets is {buckets!r}: it must be a list of capacities, each an integer from 1"
            )

    @property
    def requested(self) -> frozenset[str]:
        """The names of the options that an engine must support.

        `disk_cache` is not included: an engine without support for it stores nothing, as with None. Nor is
        `all_logits`: every session gives all logits, fast or slowly. Nor are `speculate`, `measures` and
        `compile_all`: they change no text.
        """
        names = {name for name in ("threads", "buckets") if getattr(self, name) is not None}
        return frozenset(names | ({"debug"} if self.debug else set()))


def _is_count(value: Any, largest: float = math.inf) -> bool:
    return type(value) is int and 1 <= value <= largest
