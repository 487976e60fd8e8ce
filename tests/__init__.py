"""The tests.

As many processes run them as there are cores, so each keeps to one thread. The variables are set before
anything loads torch.
"""

import os
import sys

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

# Child processes reuse compiled modules: there are hundreds of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
