"""LiteRT's buffers as numpy arrays, in place: its Python interface only copies."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

from o2o.cli.silence_stderr import quiet
from o2o.errors import ModelError

with quiet():
    import ai_edge_litert
    from ai_edge_litert.tensor_buffer import TensorBuffer


def view(buffer: TensorBuffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """The memory of `buffer`, which stays as long as this is used. Raises ModelError if the host has none.

    Source: LiteRtGetTensorBufferHostMemory of LiteRT's C interface (litert/c/litert_tensor_buffer.h), on the
    pointer that `TensorBuffer.capsule` is documented to hold.
    """
    address = ctypes.c_void_p()
    if _host_memory()(_pointer()(buffer.capsule, b"LiteRtTensorBuffer"), ctypes.byref(address)):
        raise ModelError("LiteRT keeps a tensor elsewhere than in memory: run the model on the CPU")
    size = int(np.prod(shape)) * dtype.itemsize
    memory = (ctypes.c_uint8 * size).from_address(address.value or 0)
    memory.owner = buffer  # type: ignore[attr-defined]
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


@functools.cache
def _host_memory() -> Any:
    library = next(Path(ai_edge_litert.__file__).parent.glob("libLiteRt.*"))  # which is loaded already
    function = ctypes.CDLL(str(library)).LiteRtGetTensorBufferHostMemory
    function.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]
    function.restype = ctypes.c_int
    return function


@functools.cache
def _pointer() -> Any:
    function = ctypes.pythonapi.PyCapsule_GetPointer
    function.argtypes = [ctypes.py_object, ctypes.c_char_p]
    function.restype = ctypes.c_void_p
    return function
