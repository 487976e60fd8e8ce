"""Reader of the headers of files that `torch.save` wrote (`.bin`, `.pt`, `.pth`): where each tensor's bytes
are.

Such a file is a zip archive of uncompressed entries. `NAME/data.pkl` is a pickle of a state dict, whose
tensors refer to storages; each storage is an entry `NAME/data/KEY`. PyTorch reads the pickle with its
weights-only unpickler, which runs no code of the pickle. Here it creates tensors without data. PyTorch's
offset of a storage is accepted only if the archive has an uncompressed entry there.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from o2o.errors import ModelError
from o2o.weights.stored_tensor import StoredTensor

DTYPES = {  # PyTorch's name -> the name in safetensors
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32",
    "float32": "F32", "int64": "I64", "float64": "F64",
}  # fmt: skip

# Keys of the state dict in files that also hold other objects of a training script.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of files from before PyTorch 1.6
ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # before an entry's data: magic, lengths of its name and extra field


def read_header(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Read the state dict of a file, without its data.

    Args:
        path: A file of `torch.save`.

    Returns:
        The tensors by name, in the order of the state dict. Tied weights, which share a storage, share bytes.

    Raises:
        ModelError: The file is truncated, has another format, holds other objects than weights, or stores a
            tensor in another order than C order.
        OSError: The file cannot be read.
    """
    path = Path(path).resolve()
    with open(path, "rb") as file:
        _check_kind(path, file.read(len(LEGACY)))
        entries = dict(_entries(path, file).values())
    tensors = _state_dict(path, _load(path))
    return {name: _stored_tensor(path, name, tensor, entries) for name, tensor in tensors.items()}


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse a file that is not a zip archive."""
    if head.startswith(ZIP_MAGIC):
        return
    if head.startswith(b"version "):
        raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
    if head == LEGACY:
        raise ModelError(
            f"{path} is in the format that PyTorch wrote before 1.6: save it again with "
            f"`torch.save(torch.load(FILE, weights_only=True), FILE)`"
        )
    raise ModelError(f"{path} is not a PyTorch checkpoint: `torch.save` writes other first bytes")


def _entries(path: Path, file: BinaryIO) -> dict[str, tuple[int, int]]:
    """The first byte and the size of each uncompressed entry of the archive, by name."""
    entries, names = {}, set()
    try:
        for entry in zipfile.ZipFile(file).infolist():
            name = entry.filename.partition("/")[2]  # all entries are in one folder
            names.add(name)
            file.seek(entry.header_offset)
            magic, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            if magic != ZIP_MAGIC:
                raise ValueError(f"its entry {entry.filename} is not at its offset")
            if entry.compress_type == zipfile.ZIP_STORED:
                begin = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
                entries[name] = begin, entry.file_size
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
        raise ModelError(f"{path} is truncated or damaged ({error}): download it again") from error
    if "constants.pkl" in names:
        raise ModelError(
            f"{path} is a TorchScript program: save its weights with `torch.save(program.state_dict(), FILE)`"
        )
    if "data.pkl" not in names:
        raise ModelError(f"{path} is a zip archive, but `torch.save` did not write it: it has no data.pkl")
    if "byteorder" in entries:
        begin, size = entries["byteorder"]
        file.seek(begin)
        if file.read(size) != b"little":  # PyTorch would try to swap bytes that are not loaded, and crash
            raise ModelError(f"{path} is big endian: save it again on this machine")
    return entries


def _load(path: Path) -> Any:
    """The object in the file. Its tensors are on the meta device; their storages have their file offsets."""
    try:
        import torch
    except ImportError as error:
        raise ModelError(f"{path} needs PyTorch to be read: install torch") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # PyTorch raises an error in addition to its warning
            return torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        text = str(error)
        if forbidden := re.search(r"GLOBAL (\S+)", text):
            raise ModelError(
                f"{path} is refused: its pickle runs {forbidden[1]}, which may be harmful code. If you trust "
                "the file, save only its weights: `torch.save(model.state_dict(), FILE)`"
            ) from error
        reason = text.partition("WeightsUnpickler error: ")[2] or text
        sentence = re.split(r"\.\s|\n", reason)[0]
        raise ModelError(f"{path}: PyTorch cannot read it: {type(error).__name__}: {sentence}") from error


def _state_dict(path: Path, content: Any) -> dict[str, Any]:
    """The tensors of `content` by name, or of the state dict that a training script saved in it."""
    import torch

    if not isinstance(content, Mapping):
        raise ModelError(
            f"{path} holds a {type(content).__name__}, not a state dict: save only the state dict"
        )
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _state_dict(path, content[key])
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise ModelError(f"{path} holds no state dict but a dict of {keys}: save only the state dict")
    return tensors


def _stored_tensor(path: Path, name: str, tensor: Any, entries: Mapping[int, int]) -> StoredTensor:
    import torch

    dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise ModelError(f"{path}: {name} has an unknown dtype {tensor.dtype}")
    if tensor.layout is not torch.strided or not tensor.is_contiguous():
        raise ModelError(
            f"{path}: {name} of shape {list(tensor.shape)} is not stored in C order: save it "
            "again after `.contiguous()`"
        )
    begin: int = getattr(tensor.untyped_storage(), "_checkpoint_offset", -1)
    within, length = tensor.storage_offset() * tensor.itemsize, tensor.numel() * tensor.itemsize
    if begin not in entries or within + length > entries[begin]:
        raise ModelError(f"{path}: {name} is not an uncompressed entry of `torch.save`: save it again")
    return StoredTensor(name, path, dtype, tuple(tensor.shape), begin + within, length)
