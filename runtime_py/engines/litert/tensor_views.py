"""LiteRT's tensor buffers as numpy arrays without a copy: its Python interface only copies."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError

with silenced_stderr():
    import ai_edge_litert
    from ai_edge_litert.tensor_buffer import TensorBuffer


def view(buffer: TensorBuffer, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Return the memory of a tensor buffer as an array.

    Source: LiteRtGetTensorBufferHostMemory of LiteRT's C interface (litert/c/litert_tensor_buffer.h), called
    with the pointer that `TensorBuffer.capsule` is documented to hold.

    Args:
        buffer: A buffer of at least the array's bytes. The array keeps it alive.
        shape: The shape of the array.
        dtype: The dtype of the array.

    Returns:
        An array that shares the buffer's memory.

    Raises:
        ModelError: The buffer is not in host memory.
    """
    address = ctypes.c_void_p()
    if _host_memory()(_pointer()(buffer.capsule, b"LiteRtTensorBuffer"), ctypes.byref(address)):
        raise ModelError("LiteRT stores a tensor outside of host memory: run the model on the CPU")
    size = int(np.prod(shape)) * dtype.itemsize
    memory = (ctypes.c_uint8 * size).from_address(address.value or 0)
    memory.owner = buffer  # type: ignore[attr-defined]
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


@functools.cache
def _host_memory() -> Any:
    library = next(Path(ai_edge_litert.__file__).parent.glob("libLiteRt.*"))  # already loaded
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
