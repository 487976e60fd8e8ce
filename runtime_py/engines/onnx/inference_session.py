"""ONNX Runtime's InferenceSession, on the CPU."""

from __future__ import annotations

import os
import re
from pathlib import Path

from o2o.cli.silence_stderr import silenced_stderr
from o2o.errors import ModelError

# A thread would send usage data to its developers, and a forked child process would wait for it at its end.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

with silenced_stderr():  # it logs hardware that it does not find
    import onnxruntime

_NOISE = re.compile(r"^Load model from .*? failed: ?|( Error:)? ?\b\w+\.cc:\d+ \S+ ")
SPIN_MICROSECONDS = 1000
"""How long the threads of a session wait for its next run without sleeping.

Without a limit, they slow the next run of another session, such as one that verifies a draft. The next decode
step comes sooner, so it finds them awake.
"""
_FATAL, _INFO = 4, 1  # ONNX Runtime's log severities


def session_options(threads: int, debug: bool = False) -> onnxruntime.SessionOptions:
    """Return options for all optimizations.

    Args:
        threads: Number of threads.
        debug: Whether ONNX Runtime's log goes to stderr.

    Returns:
        ONNX Runtime's options.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _INFO if debug else _FATAL
    return options


def open_inference_session(
    model: bytes | Path, options: onnxruntime.SessionOptions, folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """Load an ONNX model.

    Args:
        model: The file's bytes, or the path of the file, with external data in the same folder.
        options: See `session_options`.
        folder: The folder of the external data of a model that is given as bytes.

    Returns:
        ONNX Runtime's session.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    if folder is not None and isinstance(model, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        raise model_error_from(error) from error


def model_error_from(error: Exception) -> ModelError:
    """Return the ModelError for an error of ONNX Runtime.

    Args:
        error: ONNX Runtime's error.

    Returns:
        An error with its message alone.
    """
    return ModelError(f"ONNX Runtime refuses the model: {_reason(error)}")


def _reason(error: Exception) -> str:
    """The message without error codes, the model's path, and places in ONNX Runtime's source code."""
    _, prefix, message = str(error).partition("[ONNXRuntimeError] : ")
    *_, message = message.split(" : ", 2) if prefix else [str(error)]
    return " ".join(_NOISE.sub(" ", message).split()) or repr(error)
