"""A model's file, read once for both the selection of an engine and its preparation."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from o2o.cli.text import listed
from o2o.errors import ModelError
from runtime_py.model.onnx_metadata import may_have_external_data
from runtime_py.model.weight_dtype import onnx_weight_dtype, weight_dtype

if TYPE_CHECKING:
    from o2o.litertlm import Bundle
    from o2o.model import Model
    from o2o.streams import Source


class Contents(NamedTuple):
    """A Circle or TFLite model, and the file, or the part of a file, that its weights are read from."""

    model: Model
    source: Source


class ModelFile:
    """The file of a package's model.

    Raises:
        OSError: There is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = self._identity()
        self._contents: Contents | None = None

    @property
    def size(self) -> int:
        """Bytes of the model, including the external data of an ONNX file."""
        return sum(file.stat().st_size for file in self._files)

    @property
    def unchanged(self) -> bool:
        """Whether the file is still the one that was there at first."""
        return self._identity() == self.identity

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the file, and of the external data of an ONNX file, in hexadecimal."""
        digests = "".join(file_digest(file) for file in self._files)
        return digests if len(self._files) == 1 else hashlib.sha256(digests.encode()).hexdigest()

    @cached_property
    def _files(self) -> list[Path]:
        return [self.path, *external_data(self.path)]

    def _identity(self) -> list[int]:
        return [number for file in self._files for number in file_identity(file)]

    @cached_property
    def weight_dtype(self) -> str:
        """The dtype of the weights, for display. Reads the file unless `read` has done so."""
        if self.path.suffix == ".onnx":
            return onnx_weight_dtype(self.path)
        if self._contents is None:
            self._contents = self._read()
        return weight_dtype(self._contents.model)

    def read(self) -> Contents:
        """Read the model.

        Returns:
            The model, with roles on its inputs and outputs. It belongs to the caller, who may change it.

        Raises:
            ModelError: The file is damaged, its weights are in other files, or its layout is unknown.
        """
        _ = self.weight_dtype  # before the caller changes the model
        contents = self._contents or self._read()
        self._contents = None
        return contents

    def _read(self) -> Contents:
        from o2o.contract import contract_of
        from o2o.formats import read
        from o2o.formats.unbound_tensor import UnboundTensor
        from o2o.litertlm import is_bundle, read_bundle
        from o2o.streams import open_file
        from runtime_py.model.inferred_roles import infer_roles

        source = open_file(self.path)
        if is_bundle(source.header):
            bundle = read_bundle(source)
            _check_complete(bundle)
            source = bundle.language_model()
        model = read(source)
        constants = (value.const_value for graph in model.graphs for value in graph.initializers.values())
        if any(isinstance(constant, UnboundTensor) for constant in constants):
            raise ModelError(f"{self.path}: its weights are in other files: insert them with bind.weights.py")
        if not contract_of(model)["signatures"]:
            infer_roles(model)
        return Contents(model, source)


def _check_complete(bundle: Bundle) -> None:
    """Raise ModelError for a language model that needs other models of the file."""
    if needed := [model for model in bundle.model_types if model in _NEEDED]:
        raise ModelError(
            f"{bundle.source.name}: its language model needs the sections {listed(needed)}, which this "
            "runtime does not run: run the file with LiteRT-LM"
        )


_NEEDED = ("tf_lite_embedder", "tf_lite_per_layer_embedder", "tf_lite_aux")
"""Models of a `.litertlm` file that compute inputs of its language model."""


def model_size(file: Path) -> int:
    """Return the bytes of a model, including external data of ONNX.

    Args:
        file: A Circle, TFLite or ONNX file.

    Returns:
        The sum of the sizes of its files.
    """
    return file.stat().st_size + sum(data.stat().st_size for data in external_data(file))


def external_data(file: Path) -> list[Path]:
    """List the files with external data of an ONNX model.

    Args:
        file: A Circle, TFLite or ONNX file.

    Returns:
        The files that exist, by name. None for other formats, and for a file that is damaged.
    """
    data = file.with_name(f"{file.name}.data")
    if data.is_file():  # as this project writes it
        return [data]
    if file.suffix != ".onnx" or not may_have_external_data(file):
        return []
    from o2o.formats.onnx_reader import external_locations
    from o2o.streams import open_file

    try:
        locations = external_locations(open_file(file))
    except ModelError:
        return []
    return [path for name in sorted(locations) if (path := file.parent / name).is_file()]


def file_identity(file: Path) -> list[int]:
    """Return numbers that change when the file does.

    Args:
        file: An existing file.

    Returns:
        Device, inode, size in bytes, time of the last write and of the last change in ns.
    """
    stat = file.stat()
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        file: The file.

    Returns:
        The digest in hexadecimal.
    """
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
