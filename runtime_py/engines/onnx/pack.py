"""An ONNX model with weights packed as ONNX Runtime computes with them on this machine.

    python -m runtime_py.engines.onnx.pack MODEL ENTRY [row_exact]

Packing takes the memory of all weights, so `runtime_py.engines.onnx.prepare` runs this as a child process.
"""

from __future__ import annotations

if __name__ == "__main__":
    from o2o.cli.interrupt import exit_on_interrupt

    exit_on_interrupt(None)

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError
from runtime_py.child_process import exit_with
from runtime_py.engines.model_file import ModelFile
from runtime_py.engines.onnx.draft_verifiers import make_draft_verifier
from runtime_py.engines.onnx.inference_session import open_inference_session, session_options
from runtime_py.engines.onnx.lowered_file import MODEL, lower_file
from runtime_py.engines.onnx.num_logits import select_logits
from runtime_py.engines.onnx.run_sizes import VERIFY_LENGTHS

if TYPE_CHECKING:
    import onnx

_PLAIN = "plain.onnx"
ALIGNMENT = 64
"""The alignment of packed weights that kernels of MatMulNBits rely on, in bytes."""


def lower_and_pack(file: Path, entry: Path, row_exact: bool = False) -> None:
    """Write a packed ONNX model.

    Args:
        file: A Circle file, or an ONNX file, which gets an input `num_logits`.
        entry: The folder to write the model to.
        row_exact: See `lower_file`.

    Raises:
        ModelError: The model cannot be lowered to ONNX.
        OSError: It cannot be packed, as on a full disk.
    """
    if file.suffix == ".onnx":
        pack(select_logits(file) or file, entry / MODEL, file.parent)
        return
    plain = entry / _PLAIN
    lower_file(ModelFile(file), plain, row_exact)
    pack(plain, entry / MODEL)
    for path in entry.glob(f"{_PLAIN}*"):
        path.unlink()


def pack(model: bytes | Path, packed: Path, folder: Path | None = None) -> None:
    """Write an optimized copy of a model with packed weights, which loading maps instead of copying.

    The graphs that verify drafts are written beside it (`runtime_py.engines.onnx.draft_verifiers`).

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
    import onnx

    optimized = onnx.load(packed, load_external_data=False)
    _align(optimized, packed)
    for length in VERIFY_LENGTHS:
        verifier_file(packed.parent, length).write_bytes(make_draft_verifier(optimized, length))


def _align(model: onnx.ModelProto, packed: Path) -> None:
    """Align the packed weights in the data file. ONNX Runtime does so only behind other constants.

    An entry is `KERNEL+HASH|offset;length;0`, with one more part for each further buffer.
    """
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
    buffers = [entry for entry in entries if entry.key.startswith("prepacked_")]
    if not any(int(part.split(";")[0]) % ALIGNMENT for entry in buffers for part in _parts(entry)):
        return
    data = packed.with_name(f"{packed.name}.data")
    source, target = data.read_bytes(), bytearray()

    def moved(offset: int, length: int) -> int:
        target.extend(bytes(-len(target) % ALIGNMENT))
        target.extend(source[offset : offset + length])
        return len(target) - length

    for tensor in model.graph.initializer:
        by_key = {entry.key: entry for entry in tensor.external_data}
        if "offset" in by_key:
            place = int(by_key["offset"].value), int(by_key["length"].value)
            by_key["offset"].value = str(moved(*place))
    for entry in buffers:
        parts = (part.split(";") for part in _parts(entry))
        new_parts = (";".join([str(moved(int(start), int(n))), n, *rest]) for start, n, *rest in parts)
        entry.value = "|".join([entry.value.split("|")[0], *new_parts])
    data.write_bytes(target)
    packed.write_bytes(model.SerializeToString())


def _parts(entry: onnx.StringStringEntryProto) -> list[str]:
    return entry.value.split("|")[1:]


def verifier_file(entry: Path, length: int) -> Path:
    """Return the graph that verifies drafts.

    Args:
        entry: The folder of a packed model.
        length: T, one of `VERIFY_LENGTHS`.

    Returns:
        Its file, with the external data of the packed model.
    """
    return entry / f"verify_{length}.onnx"


if __name__ == "__main__":
    exit_with(lambda: lower_and_pack(Path(sys.argv[1]), Path(sys.argv[2]), "row_exact" in sys.argv[3:]))
