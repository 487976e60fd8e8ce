"""A conversation on the terminal, or through a pipe: messages in, a line each, answers out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from o2o.cli.interrupt import survive_interrupts
from o2o.errors import UsageError
from runtime_py.conversation import Conversation
from runtime_py.evaluation.timing import Stats
from runtime_py.generation.generate import Finish

RESET = "/reset"
HELP = f"a line is a message; Ctrl-C stops an answer, {RESET} begins anew, Ctrl-D ends"


def messages() -> Iterator[str]:
    """The lines of stdin; on a terminal it is asked for them, with what `readline` offers to edit them."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it
    print(HELP, file=sys.stderr)
    with contextlib.suppress(EOFError):
        while True:
            yield input("> ")
    print()


def talk(
    conversation: Conversation, only: str | None, stats: Stats | None, say: Callable[[str], None]
) -> int:
    """Print an answer to each of `messages`, or to `only` one, as it comes; the exit code.

    Ctrl-C ends an answer; what was said until then stays said. A message that does not fit, or that the
    template refuses, is told by `say` and forgotten; it is the exit code's reason where nothing comes after.
    stats: reported on stderr after each answer.
    """
    survive_interrupts()
    code, hint = 0, f" ({RESET} begins anew)" if only is None else ""
    for message in messages() if only is None else [only]:
        if not message.strip():
            continue
        if message.strip() == RESET:
            conversation.reset()
            continue
        try:
            code = 0
            if _answer(conversation, message, stats) == "capacity":
                say(f"{conversation.session.context_full_message}{hint}")
        except UsageError as error:
            say(f"{error}{hint}")
            code = error.exit_code
        except KeyboardInterrupt:
            print()
        stats = stats and Stats()
    return code


def _answer(conversation: Conversation, message: str, stats: Stats | None) -> Finish | None:
    """Print it; why it ended."""
    finish = None
    if stats:
        stats.begin()
    with contextlib.closing(conversation.say(message)) as tokens:
        for token in tokens:
            if stats:
                stats.token()
            print(token.text, end="", flush=True)
            finish = token.finish
    print()
    if stats:
        print(stats.report(conversation.session.runs), file=sys.stderr)
    return finish
