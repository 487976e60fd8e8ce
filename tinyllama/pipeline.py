#!/usr/bin/env python3
"""Build a package from a checkpoint, with the filters. The defaults are the demo model and this folder.

    python tinyllama/pipeline.py --package tinyllama                   # the demo model
    python tinyllama/pipeline.py --model DIR_OR_HUB_ID --package my-model --max-length 256
    python tinyllama/pipeline.py --format tflite --quantize dynamic_int8 --package my-model --max-length 256

Every command is shown before it runs. The package changes when all of them have succeeded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("pipeline.py")

from export import pipeline

HERE = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None for `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    return pipeline.main(argv, "pipeline.py", __doc__, model=HERE / "demo" / "checkpoint", package=HERE)


if __name__ == "__main__":
    sys.exit(main())
