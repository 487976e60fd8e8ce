"""Packing of weights into a file, in the layout that XNNPACK uses on this machine.

    python -m runtime_py.engines.litert.pack MODEL ENTRY

LiteRT aborts its process when the disk becomes full, so `runtime_py.engines.litert.prepare` runs this as a
child process.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import sys
from pathlib import Path

from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError
from runtime_py.child_process import exit_with
from runtime_py.engines.litert.compiled_model import compile_model, silence_at_exit
from runtime_py.engines.litert.lowered_file import PACKED, LoweredFile


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
    exit_with(lambda: pack(*map(Path, sys.argv[1:])))
