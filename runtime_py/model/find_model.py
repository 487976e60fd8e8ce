"""The model of a package: which file of a folder it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime_py.model.model_config import genai_decoder

MODELS = ("model.circle", "model.tflite", "model.onnx", "model.litertlm")
"""Names of the model of a package that this project builds, the preferred one first."""
_EXPORTED = (
    "decoder_model_merged.onnx",
    "decoder_model.onnx",
    "decoder_with_past_model.onnx",
)
"""Names that Optimum chooses for decoders."""
_ONNX_FOLDER = "onnx"
"""The folder of the ONNX files in a checkpoint for transformers.js."""


def find_model(folder: Path) -> Path | None:
    """Find the model of a package.

    Args:
        folder: The folder of the package.

    Returns:
        A file of `MODELS`; else the decoder that `genai_config.json` names, or that Optimum named; else the
        only ONNX file. These may also be in the folder `onnx`. None if there is no such file.
    """
    return next((file for file in _candidates(folder) if file.is_file()), None)


def _candidates(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in MODELS)
    name = genai_decoder(folder).get("filename")
    if isinstance(name, str):
        yield folder / name
    for place in (folder, folder / _ONNX_FOLDER):
        yield from (place / name for name in ("model.onnx", *_EXPORTED))
        files = sorted(place.glob("*.onnx"))
        if len(files) == 1:
            yield files[0]


def files_folder(model: Path) -> Path:
    """Return the folder of the tokenizer and the configuration of a model.

    Args:
        model: The model's file.

    Returns:
        Its folder; the folder above for an ONNX file in a folder `onnx`.
    """
    folder = model.parent
    is_inner = model.suffix == ".onnx" and folder.absolute().name == _ONNX_FOLDER
    return folder.absolute().parent if is_inner else folder
