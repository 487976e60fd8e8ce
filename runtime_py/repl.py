"""The chat loop on a terminal or through a pipe: each line of stdin is a message, answers go to stdout."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator

from o2o.cli.interrupt import survive_interrupts
from o2o.errors import UsageError
from runtime_py.benchmark.timing import Stats
from runtime_py.conversation import Conversation
from runtime_py.generation.generate import Finish

RESET = "/reset"
HELP = f"each line is a message; Ctrl-C stops an answer, {RESET} starts a new conversation, Ctrl-D ends"
COMMAND = re.compile(r"/[a-z?]+\s*")  # also the commands of other programs, such as /help and /exit


def read_messages() -> Iterator[str]:
    """Read messages from stdin, on a terminal with a prompt and line editing.

    On a terminal, an unknown command such as `/help` is no message: it prints the commands.

    Yields:
        The lines.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A byte that is not UTF-8 becomes a lone surrogate, which `encode` refuses: one message, not all.
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it
    print(HELP, file=sys.stderr)
    with contextlib.suppress(EOFError):
        while True:
            line = input("> ")
            if COMMAND.fullmatch(line) and line.strip() != RESET:
                print(HELP, file=sys.stderr)
            else:
                yield line
    print()


def chat_loop(
    conversation: Conversation, only: str | None, stats: Stats | None, log: Callable[[str], None]
) -> int:
    """Answer the messages on stdin. Answers are printed while they are generated.

    SIGINT ends an answer, which stays in the conversation up to the signal. A message that does not
    fit, or that the template refuses, is logged and removed.

    Args:
        conversation: The conversation.
        only: The only message to answer; None to read stdin.
        stats: Timing of the first answer; the report is printed on stderr after each answer. None for no
            report.
        log: Prints a message for the user.

    Returns:
        The exit code of the last message: 0, or 2 if it was refused.
    """
    survive_interrupts()
    code, hint = 0, f" ({RESET} starts a new conversation)" if only is None else ""
    for message in read_messages() if only is None else [only]:
        if not message.strip():
            continue
        if message.strip() == RESET:
            conversation.reset()
            continue
        try:
            code = 0
            if _answer(conversation, message, stats) == "capacity":
                log(f"{conversation.session.context_full_message}{hint}")
        except UsageError as error:
            log(f"{error}{hint}")
            code = error.exit_code
        except KeyboardInterrupt:
            print()
        stats = stats and Stats()
    return code


def _answer(conversation: Conversation, message: str, stats: Stats | None) -> Finish | None:
    """Print the answer to a message. Return why it ended."""
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
        print(stats.report(conversation.session.runs, conversation.session.drafts), file=sys.stderr)
    return finish
