"""Where each tensor's bytes lie in a file that `torch.save` wrote (`.bin`, `.pt`, `.pth`).

Such a file is a zip archive of uncompressed entries: `NAME/data.pkl`, a pickle of a state dict whose tensors
refer to storages, and each storage as `NAME/data/KEY`. PyTorch itself reads the pickle, by its unpickler for
weights alone: it runs no code that a pickle may name, only rebuilds tensors, here without data. Where it says
that a storage begins is believed only when the archive has an uncompressed entry there.
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

DTYPES = {  # as torch calls them: as safetensors spells them
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16", "int32": "I32", "uint32": "U32",
    "float32": "F32", "int64": "I64", "float64": "F64",
}  # fmt: skip

# What training scripts call the state dict among other things that they save with it.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch.save began before 1.6
ZIP_MAGIC = b"PK\x03\x04"
LOCAL_HEADER = struct.Struct("<4s22xHH")  # before an entry's data: magic, lengths of its name and extras


def read_header(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """The tensors of the state dict in the file at `path`, in its order; no data is read. Tensors that share
    a storage, as tied weights do, share their bytes.

    Raises ModelError for a file that is cut short, is no such file, needs more than weights to be read, or
    keeps a tensor otherwise than in C order; OSError for one that cannot be read.
    """
    path = Path(path).resolve()
    with open(path, "rb") as file:
        _check_kind(path, file.read(len(LEGACY)))
        places = dict(_entries(path, file).values())
    tensors = _state_dict(path, _load(path))
    return {name: _entry(path, name, tensor, places) for name, tensor in tensors.items()}


def _check_kind(path: Path, head: bytes) -> None:
    """Raises ModelError, with what to do, for what is no zip archive."""
    if head.startswith(ZIP_MAGIC):
        return
    if head.startswith(b"version "):
        raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there")
    if head == LEGACY:
        raise ModelError(
            f"{path} is in the format that PyTorch wrote before 1.6: save it again, "
            "`torch.save(torch.load(FILE, weights_only=True), FILE)`"
        )
    raise ModelError(f"{path} is no PyTorch checkpoint: it does not begin as `torch.save` writes it")


def _entries(path: Path, file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Where the uncompressed entries of the archive lie in the file, by name: begin and size, in bytes.

    Raises ModelError when they are not those of a state dict.
    """
    found, names = {}, set()
    try:
        for entry in zipfile.ZipFile(file).infolist():
            name = entry.filename.partition("/")[2]  # all of them are in one folder
            names.add(name)
            file.seek(entry.header_offset)
            magic, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
            if magic != ZIP_MAGIC:
                raise ValueError(f"nothing where its entry {entry.filename} should be")
            if entry.compress_type == zipfile.ZIP_STORED:
                begin = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
                found[name] = begin, entry.file_size
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as error:
        raise ModelError(f"{path} is cut short or damaged ({error}): download it again") from error
    if "constants.pkl" in names:
        raise ModelError(
            f"{path} is a TorchScript program: save its weights, `torch.save(program.state_dict(), FILE)`"
        )
    if "data.pkl" not in names:
        raise ModelError(f"{path} is a zip archive, but not one of `torch.save`: no data.pkl in it")
    if "byteorder" in found:
        begin, size = found["byteorder"]
        file.seek(begin)
        if file.read(size) != b"little":  # PyTorch would swap the bytes that it has not loaded, and crash
            raise ModelError(f"{path} is in the byte order of another machine: save it again on this one")
    return found


def _load(path: Path) -> Any:
    """What the file holds; tensors are on the meta device, and know where their storages begin."""
    try:
        import torch
    except ImportError as error:
        raise ModelError(f"{path} is a pickle, which PyTorch reads: install torch") from error
    try:
        with warnings.catch_warnings(action="ignore"):  # that it may not know what it then reads, or refuses
            return torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:
        text = str(error)
        if forbidden := re.search(r"GLOBAL (\S+)", text):
            raise ModelError(
                f"{path} is not opened: its pickle needs {forbidden[1]}, which weights do not and which "
                "could do anything: where you trust it, save the weights alone, "
                "`torch.save(model.state_dict(), FILE)`"
            ) from error
        told = text.partition("WeightsUnpickler error: ")[2] or text
        sentence = re.split(r"\.\s|\n", told)[0]
        raise ModelError(f"{path}: PyTorch cannot read it: {type(error).__name__}: {sentence}") from error


def _state_dict(path: Path, content: Any) -> dict[str, Any]:
    """The tensors of `content` by name, or of what a training script calls the state dict within it."""
    import torch

    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds a {type(content).__name__}, no state dict: save the state dict alone")
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return _state_dict(path, content[key])
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise ModelError(f"{path} holds no state dict but a table of {keys}: save the state dict alone")
    return tensors


def _entry(path: Path, name: str, tensor: Any, places: Mapping[int, int]) -> StoredTensor:
    import torch

    dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise ModelError(f"{path}: {name} has an unknown dtype {tensor.dtype}")
    if tensor.layout is not torch.strided or not tensor.is_contiguous():
        raise ModelError(
            f"{path}: {name} of shape {list(tensor.shape)} is not stored row by row: save it again, "
            "`.contiguous()`"
        )
    begin: int = getattr(tensor.untyped_storage(), "_checkpoint_offset", -1)
    within, length = tensor.storage_offset() * tensor.itemsize, tensor.numel() * tensor.itemsize
    if begin not in places or within + length > places[begin]:
        raise ModelError(f"{path}: {name} lies not where `torch.save` puts it, uncompressed: save it again")
    return StoredTensor(name, path, dtype, tuple(tensor.shape), begin + within, length)
