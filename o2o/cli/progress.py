"""Progress bars on stderr, if it is a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from o2o.cli.terminal import escaped, unescaped

TICK = 1.0
"""Seconds between two updates of the elapsed time."""
LONG = 256_000_000
"""Bytes from which work on them takes seconds, and has a bar."""


@contextlib.contextmanager
def progress(title: str, total: int, unit: str = "B", shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with the elapsed time, which runs on while nothing advances.

    Without a terminal, or if `shown` is false, nothing is shown and tqdm is not imported.

    Args:
        title: The text in front of the bar.
        total: The value of the full bar, in `unit`.
        unit: `B` for bytes, else a noun.
        shown: False to show nothing.

    Yields:
        A function that advances the bar by its argument.
    """
    if not (shown and sys.stderr is not None and sys.stderr.isatty()):
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(
        desc=escaped(title),
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        leave=False,
        file=unescaped(sys.stderr),  # a bar moves the cursor
    ) as bar:
        ended = threading.Event()

        def refresh() -> None:
            while not ended.wait(TICK):
                bar.refresh()

        threading.Thread(target=refresh, daemon=True).start()
        try:
            yield bar.update
        finally:
            ended.set()
