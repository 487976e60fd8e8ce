"""Progress bars, for whoever looks on: none unless stderr is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(what: str, total: int, unit: str = "B", shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar that says how much of `total` is done, as far as the function that is given out is told.

    unit: `B` for bytes. Nothing is shown, nor imported, when nobody looks on or `shown` is false.
    """
    if not (shown and sys.stderr is not None and sys.stderr.isatty()):
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(desc=what, total=total, unit=unit, unit_scale=unit == "B", leave=False, file=sys.stderr) as bar:
        yield bar.update
