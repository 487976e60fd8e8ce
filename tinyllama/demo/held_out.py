"""Stories that the demo's model was not trained on: the first held-out stories of training_report.json.

    python -m tinyllama.demo.held_out --stories 64 > held_out.txt

A blank line parts two stories. Each ends with `</s>`, which the tokenizer reads as the end of a text: the
model learned to predict it, too.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("held_out")

import argparse
import sys
from collections.abc import Sequence

from o2o.cli.arguments import Parser, positive_int
from o2o.cli.command import run
from tinyllama.demo.corpus import make_stories

SEED = 2_000_000  # of the stories held out by `train` with its seed 0
END = "</s>"


def held_out(stories: int) -> str:
    """Return the text of the first held-out stories.

    Args:
        stories: How many.

    Returns:
        The stories, separated by empty lines.
    """
    return "\n\n".join(story.text + END for story in make_stories(stories, SEED)) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    parser = Parser(
        prog="python -m tinyllama.demo.held_out",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--stories", metavar="N", type=positive_int, default=64, help="how many (%(default)s)"
    )

    def body() -> None:
        print(held_out(parser.parse_args(argv).stories), end="")

    return run("held_out", body)


if __name__ == "__main__":
    sys.exit(main())
