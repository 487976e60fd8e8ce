"""The process that runs LiteRT and ONNX Runtime for `--check`.

It reads requests from stdin and writes replies to stdout, both pickled (`engine_process` is the other end).
It imports little, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]
LONGEST = 300
"""Characters of a reason: LiteRT may name hundreds of tensors in one line."""


def serve() -> None:
    """Answer requests until stdin ends. A reply is (True, result) or (False, reason)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end decides
    with contextlib.suppress(OSError):  # where memory is short, this process must end, not the other one
        Path("/proc/self/oom_score_adj").write_text("1000")
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print to stdout, which holds the replies
    models: dict[int, Any] = {}
    while True:
        try:
            name, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = True, REQUESTS[name](models, *arguments)
        except Exception as error:  # any failure of an engine is a reply
            lines = str(error).strip().splitlines()
            reason = lines[-1] if lines else type(error).__name__
            reply = False, reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}..."
        pickle.dump(reply, replies)
        replies.flush()


def load_litert(
    models: dict[int, Any], key: int, path: str, delegates: bool, keep_tensors: bool, allocate: bool
) -> None:
    """Load a TFLite file.

    Args:
        models: Gets the interpreter.
        key: Its number in later requests.
        path: The file.
        delegates: Let delegates, such as XNNPACK, run operators.
        keep_tensors: Keep the tensors of all operators, for `tensors`. Delegates keep none.
        allocate: Check now that the model runs on inputs of the sizes in the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    options: dict[str, Any] = {}
    if keep_tensors:
        options["experimental_preserve_all_tensors"] = True
    if not delegates:
        options["experimental_op_resolver_type"] = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=path, **options)
    if allocate:
        interpreter.allocate_tensors()
    models[key] = interpreter


def run_litert(models: dict[int, Any], key: int, signature: str, feeds: Arrays) -> dict[str, np.ndarray]:
    """Run a signature of a TFLite file.

    Args:
        models: Has the interpreter.
        key: Its number.
        signature: The name of the signature.
        feeds: Inputs by their names in the signature.

    Returns:
        Outputs by their names in the signature.
    """
    runner = models[key].get_signature_runner(signature)
    # LiteRT reads the pointer, not the text, of one string in an array of objects.
    taken = {n: np.array(x.item()) if x.dtype == object and x.ndim == 0 else x for n, x in feeds.items()}
    return {name: np.array(value) for name, value in runner(**taken).items()}


def tensors(models: dict[int, Any], key: int, graph: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return tensors of the last run of a model that keeps its tensors.

    Args:
        models: Has the interpreter.
        key: Its number.
        graph: The number of the graph in the file.
        names: Names of tensors.

    Returns:
        Numbers by name. Tensors that cannot be read are absent.
    """
    places = {detail["name"]: detail["index"] for detail in models[key].get_tensor_details(graph)}
    numbers = {}
    for name in names:
        if name in places:
            with contextlib.suppress(ValueError):  # a tensor without data
                numbers[name] = np.array(models[key].get_tensor(places[name], graph))
    return numbers


def load_onnx(models: dict[int, Any], key: int, path: str) -> list[tuple[str, list, str]]:
    """Load an ONNX file on ONNX Runtime.

    Args:
        models: Gets the session.
        key: Its number in later requests.
        path: The file.

    Returns:
        Name, shape and type of each input.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it would send usage data
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # By default, products with a DequantizeLinear of 4 bits round the other operand to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    models[key] = session
    return [(value.name, list(value.shape), value.type) for value in session.get_inputs()]


def run_onnx(models: dict[int, Any], key: int, feeds: Arrays) -> dict[str, np.ndarray]:
    """Run an ONNX file.

    Args:
        models: Has the session.
        key: Its number.
        feeds: Inputs by name. Defaults of inputs that cannot be replaced (IR version 3) are left out.

    Returns:
        Outputs by name.
    """
    session = models[key]
    names = [value.name for value in session.get_outputs()]
    inputs = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    taken = {name: numbers for name, numbers in feeds.items() if name in inputs}
    return dict(zip(names, session.run(None, taken), strict=True))


def release(models: dict[int, Any], key: int) -> None:
    """Forget a model.

    Args:
        models: Has the model.
        key: Its number.
    """
    models.pop(key, None)


REQUESTS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (load_litert, run_litert, tensors, load_onnx, run_onnx, release)
}
