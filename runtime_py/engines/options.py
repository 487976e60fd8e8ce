"""Options of an engine, built once from a command line or from keyword arguments and passed through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from runtime_py.engines.disk_cache import DiskCache, user_cache

AUTO = "auto"
"""The engine name that stands for the fastest installed one."""


@dataclass(frozen=True)
class EngineOptions:
    """How to load a model.

    Attributes:
        engine: A name of `runtime_py.engines.registry.ENGINES`, or `AUTO`.
        threads: Number of threads; None for what suits the model's size.
        buckets: Capacities of additional decode graphs, each below S; None for the engine's default.
        all_logits: Whether prefills return the logits of each token, for scoring. A text is then read fast by
            `EngineSession.logits`, and generated no faster, and slower on LiteRT.
        disk_cache: Where prepared large models are stored for the next load; None to store nothing.
        debug: Whether the runtime's own log goes to stderr.
        log: Called with one line when something slow happens or fails.
    """

    engine: str = AUTO
    threads: int | None = None
    buckets: Sequence[int] | None = None
    all_logits: bool = False
    disk_cache: DiskCache | None = field(default_factory=user_cache)
    debug: bool = False
    log: Callable[[str], None] = lambda line: None

    @property
    def requested(self) -> frozenset[str]:
        """The names of the options that an engine must support.

        `disk_cache` is not included: an engine without support for it stores nothing, as with None. Nor is
        `all_logits`: every session gives all logits, fast or slowly.
        """
        names = {name for name in ("threads", "buckets") if getattr(self, name) is not None}
        return frozenset(names | ({"debug"} if self.debug else set()))
