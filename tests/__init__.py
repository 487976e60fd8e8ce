"""The tests. As many processes run them as there are cores, so each keeps to one thread: threads that wait
for those of another process make tiny models many times slower. Said here, before anything loads torch."""

import os

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
