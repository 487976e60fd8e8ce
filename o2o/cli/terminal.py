"""Terminals: control characters in texts of models and names of files are shown, not obeyed.

A token, a tensor's name or a file's name may hold escape sequences, which could rewrite what a terminal
shows. `escaping` puts streams in the place of stdout and stderr that show them as `\\x1b`. Pipes and files
get the bytes unchanged.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from typing import TextIO

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""C0 without tab and line feed, DEL, C1, and marks that reverse the direction of text."""


def escaped(text: str) -> str:
    """Replace control characters by visible text.

    Args:
        text: Any text.

    Returns:
        The text with `\\x1b` for ESC and `\\u202e` for a right-to-left override. Tabs and line feeds stay.
    """
    return _CONTROL.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class EscapingStream(io.TextIOWrapper):
    """A text stream on a terminal. `original` is the stream that obeys control characters."""

    def __init__(self, original: io.TextIOWrapper) -> None:
        """Write to the same buffer as another stream.

        Args:
            original: The stream, which must not be used at the same time.
        """
        super().__init__(
            original.buffer,
            encoding=original.encoding,
            errors=original.errors,
            line_buffering=original.line_buffering,
            write_through=original.write_through,
        )
        self.original = original

    def write(self, text: str) -> int:
        """See `io.TextIOBase`."""
        super().write(escaped(text))
        return len(text)


def unescaped(stream: TextIO) -> TextIO:
    """Return the stream for a library that moves the cursor, such as a progress bar.

    Args:
        stream: `sys.stdout` or `sys.stderr`.

    Returns:
        The stream that obeys control characters.
    """
    if isinstance(stream, EscapingStream):
        stream.flush()
        return stream.original
    return stream


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Escape what is written to `sys.stdout` and `sys.stderr` inside the block, where they are terminals.

    Yields:
        Nothing.
    """
    replaced: dict[str, EscapingStream] = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and not stream.closed and stream.isatty():
            stream.flush()
            replaced[name] = EscapingStream(stream)
            setattr(sys, name, replaced[name])
    try:
        yield
    finally:
        for name, stream in replaced.items():
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
            with contextlib.suppress(OSError, ValueError):
                stream.detach()
            setattr(sys, name, stream.original)
