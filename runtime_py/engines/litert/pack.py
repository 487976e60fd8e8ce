"""Packing of weights into a file, in the layout that XNNPACK uses on this machine.

    python -m runtime_py.engines.litert.pack MODEL ENTRY OPTIONS

LiteRT aborts its process when the disk becomes full, and lowering needs memory that only the end of a process
gives back. So `runtime_py.engines.litert.prepare` runs this as a child process.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import errno
import json
import os
import sys
from pathlib import Path

from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError
from runtime_py.child_process import exit_with
from runtime_py.engines.litert.compiled_model import compile_model, silence_at_exit
from runtime_py.engines.litert.lowered_file import PACKED, LoweringOptions, lower_file
from runtime_py.engines.model_file import ModelFile


def lower_and_pack(file: Path, entry: Path, lowering: LoweringOptions) -> None:
    """Lower a model and pack its weights.

    Args:
        file: The model's file.
        entry: The folder that the `LoweredFile` and the packed weights are written to.
        lowering: How to lower it.

    Raises:
        ModelError: LiteRT cannot run the model.
        OSError: LiteRT fails. Loading without packed weights then shows whether the model is the cause.
    """
    lowered = lower_file(ModelFile(file), lowering)
    lowered.save(entry)
    needed = file.stat().st_size + lowered.growth
    disk = os.statvfs(entry)
    if needed > (free := disk.f_bavail * disk.f_frsize):
        raise OSError(errno.ENOSPC, f"packing needs {needed:,} bytes, and {free:,} are free", str(entry))
    silence_at_exit()
    with silenced_stderr():
        try:
            compile_model(lowered.open(file), entry / PACKED, threads=1).close()
        except ModelError as error:
            raise OSError(str(error)) from error


if __name__ == "__main__":
    file, entry, options = sys.argv[1:]
    exit_with(lambda: lower_and_pack(Path(file), Path(entry), LoweringOptions(**json.loads(options))))
