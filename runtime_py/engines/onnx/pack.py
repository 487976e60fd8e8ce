"""An ONNX model with weights packed as ONNX Runtime computes with them on this machine.

    python -m runtime_py.engines.onnx.pack MODEL ENTRY

Packing takes the memory of all weights, so `runtime_py.engines.onnx.prepare` runs this as a child process.
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
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onnx.inference_session import open_inference_session, session_options
from runtime_py.engines.onnx.lowered_file import MODEL, lower_file
from runtime_py.engines.onnx.num_logits import select_logits

_PLAIN = "plain.onnx"


def lower_and_pack(file: Path, entry: Path) -> None:
    """Write a packed ONNX model.

    Args:
        file: A Circle file, or an ONNX file, which gets an input `num_logits`.
        entry: The folder to write the model to.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: It cannot be packed, as on a full disk.
    """
    if file.suffix == ".onnx":
        pack(select_logits(file) or file, entry / MODEL, file.parent)
        return
    plain = entry / _PLAIN
    lower_file(ModelFile(file), plain)
    pack(plain, entry / MODEL)
    for path in entry.glob(f"{_PLAIN}*"):
        path.unlink()


def pack(model: bytes | Path, packed: Path, folder: Path | None = None) -> None:
    """Write an optimized copy of a model with packed weights, which loading maps instead of copying.

    Args:
        model: An ONNX file, or its bytes.
        packed: The new file. Its data goes to another file in its folder.
        folder: The folder of the external data of a model that is given as bytes.

    Raises:
        OSError: ONNX Runtime refuses the model, or cannot write: it reports both alike.
    """
    options = session_options(threads=1)
    options.optimized_model_filepath = str(packed)
    for key, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", f"{packed.name}.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        options.add_session_config_entry(key, value)
    with silenced_stderr():
        try:
            open_inference_session(model, options, folder)
        except ModelError as error:
            raise OSError(str(error)) from error


if __name__ == "__main__":
    exit_with(lambda: lower_and_pack(*map(Path, sys.argv[1:])))
