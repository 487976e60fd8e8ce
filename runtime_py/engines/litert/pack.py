"""Packing of weights into a file, in the layout that XNNPACK uses on this machine.

    python -m runtime_py.engines.litert.pack MODEL ENTRY OPTIONS    lowers the model
    python -m runtime_py.engines.litert.pack MODEL ENTRY            packs the weights of the lowered model

LiteRT aborts its process when the disk becomes full, and lowering takes memory that only the end of a process
gives back. So `runtime_py.engines.litert.prepare` runs both as child processes.
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
from runtime_py.engines.litert.lowered_file import PACKED, LoweredFile, LoweringOptions, lower_file
from runtime_py.engines.model_file import ModelFile


def lower(file: Path, entry: Path, lowering: LoweringOptions) -> None:
    """Lower a model.

    Args:
        file: The model's file.
        entry: The folder that the `LoweredFile` is saved to.
        lowering: How to lower it.

    Raises:
        ModelError: LiteRT cannot run the model.
        OSError: A file cannot be read or written, or there is no room for the packed weights.
    """
    lowered = lower_file(ModelFile(file), lowering)
    lowered.save(entry)
    needed = file.stat().st_size + lowered.growth
    disk = os.statvfs(entry)
    if needed > (free := disk.f_bavail * disk.f_frsize):
        raise OSError(errno.ENOSPC, f"packing needs {needed:,} bytes, and {free:,} are free", str(entry))


def pack(file: Path, entry: Path) -> None:
    """Pack the weights of a lowered model.

    Args:
        file: The model's file.
        entry: The folder with the saved `LoweredFile`; the packed weights are written there.

    Raises:
        OSError: LiteRT fails. Loading without packed weights then shows whether the model is the cause.
    """
    silence_at_exit()
    with silenced_stderr():
        try:
            compile_model(LoweredFile.load(entry).open(file), entry / PACKED, threads=1).close()
        except ModelError as error:
            raise OSError(str(error)) from error


if __name__ == "__main__":
    file, entry, *options = sys.argv[1:]
    if options:
        exit_with(lambda: lower(Path(file), Path(entry), LoweringOptions(**json.loads(options[0]))))
    exit_with(lambda: pack(Path(file), Path(entry)))
