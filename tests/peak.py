"""How much memory a filter takes, in a process of its own.

    done = subprocess.run(command("gc", "in.circle", "-o", "out.circle"), stderr=subprocess.PIPE)
    assert peak(done.stderr) < 200 << 20

What the system counts for a process goes on from what its parent had when it was started; what is resident of
its own memory does not.
"""

from __future__ import annotations

import sys

RUN = """
import sys
from o2o import filters, formats
code = filters.load(sys.argv[1]).main(sys.argv[2:])
with open("/proc/self/status") as status:
    print(*(line for line in status if line.startswith("VmHWM:")), end="", file=sys.stderr)
sys.exit(code)
"""


def command(module: str, *arguments: object) -> list[str]:
    """The command that runs the filter in `o2o.filters.MODULE` and tells its `peak` on stderr."""
    return [sys.executable, "-c", RUN, module, *map(str, arguments)]


def peak(stderr: bytes) -> int:
    """The most bytes that were resident, by what `command` said."""
    last = stderr.splitlines()[-1].split()
    assert last[0] == b"VmHWM:", stderr
    return int(last[1]) << 10
