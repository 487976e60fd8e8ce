#!/usr/bin/env python3
"""Build a package from a checkpoint: the command of `export.pipeline`, with the demo model as default.

python tinyllama/pipeline.py --package tinyllama                   # the demo model
python tinyllama/pipeline.py --model DIR_OR_HUB_ID --package my-model --max-length 256
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python looks for modules in this folder first, where `tinyllama` is a script.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt("pipeline.py")

from export.pipeline import main

if __name__ == "__main__":
    sys.exit(main())
