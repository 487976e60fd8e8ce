"""ONNX Runtime: one ONNX graph for prompts of any length and for decode, on the CPU.

Tokens, position, logits and caches lie in numpy's memory, and the graph's ends are bound to it once. A cache
is bound as input and as output, so the new rows are written where they lie and nothing is copied from run to
run. A decode step writes two numbers and runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from o2o.cli.silence_stderr import quiet
from o2o.contract import METADATA_NAME
from o2o.errors import ModelError
from runtime_py.engines.prefill_plan import Chunk
from runtime_py.model.contract import Contract, Signature, Slot

INSTALL = "pip install onnxruntime==1.31.1"
try:
    with quiet():  # it tells of hardware that it does not find
        import onnxruntime
except ImportError as error:
    raise ModelError(f"the onnx engine needs ONNX Runtime ({error}): {INSTALL}") from error

LONGEST = 512
"""How many tokens one run reads. With 135 million parameters, one run of 512 is 3 to 12% faster than four of
128, and takes 20 MB more."""
_SILENT, _TALKATIVE = 4, 1  # severities from which ONNX Runtime logs: fatal, info


class OnnxEngine:
    """A `runtime_py.engines.Engine` on ONNX Runtime."""

    def __init__(self, model: bytes | Path, *, threads: int = 1, debug: bool = False) -> None:
        """Load the ONNX model that `model` is, or that lies there with its external data beside it.

        It takes tokens [1, T], the position [1] of the first, and the caches, and gives caches and logits,
        of the last token [1, 1, V] or of all [1, T, V], as its `o2o.contract` tells. threads: how many ONNX
        Runtime may use. debug: let it write its log to stderr. Raises ModelError for other models, and for
        those that ONNX Runtime refuses.
        """
        with quiet(not debug):
            self._session = _session(model, _options(threads, debug))
            told = self._session.get_modelmeta().custom_metadata_map.get(METADATA_NAME)
            contract, self._every_logit = Contract.parse_dynamic(told)
            self._decode = contract.decode
            self.capacity = contract.capacity
            self.vocab_size = contract.vocab_size
            self._check_ends()
            # What is masked is still multiplied, by 0; so it must be a number.
            self._caches = {
                slot: np.zeros(tensor.shape, tensor.dtype) for slot, tensor in self._decode.caches.items()
            }
            self._step = self._call(1)
            self.decode(0, 0)  # what is done once is done, and said, now

    def plan(self, prompt: int, kept: int = 0) -> list[Chunk]:
        """See `Engine`. Runs of `LONGEST` tokens, and one of what is left: nothing is padded."""
        whole, rest = divmod(prompt - kept, LONGEST)
        starts = [kept + LONGEST * run for run in range(whole)]
        found = [Chunk(LONGEST, start, start + LONGEST) for start in starts]
        return found + ([Chunk(rest, prompt - rest, prompt)] if rest else [])

    def prefill(self, tokens: Sequence[int], kept: int = 0) -> np.ndarray:
        """See `Engine`."""
        for chunk in self.plan(len(tokens), kept):
            call = self._call(chunk.length)
            call.run(tokens[chunk.start : chunk.stop], chunk.start)
        return call.logits[-1].copy()

    def decode(self, token: int, position: int) -> np.ndarray:
        """See `Engine`."""
        self._step.run(token, position)
        return self._step.logits[-1].copy()

    def close(self) -> None:
        """See `Engine`."""
        del self._step, self._session, self._caches

    def _call(self, length: int) -> _Call:
        rows = length if self._every_logit else 1
        return _Call(self._session, self._decode, self._caches, length, rows)

    def _check_ends(self) -> None:
        """What ONNX Runtime has in hand must be what the contract tells."""
        for what, found, told in (
            ("inputs", self._session.get_inputs(), self._decode.inputs),
            ("outputs", self._session.get_outputs(), self._decode.outputs),
        ):
            if (names := sorted(end.name for end in found)) != sorted(tensor.name for tensor in told):
                raise ModelError(
                    f"the model's {what} are {', '.join(names)}, not those its contract tells of"
                )
        for slot, cache in self._decode.caches.items():
            rows = self._decode.rows[slot]
            if (rows.shape, rows.layout) != (cache.shape, cache.layout):
                raise ModelError(f"the model does not give {cache.name!r} back as it came: lower it again")


class _Call:
    """The graph's ends, bound to memory for so many tokens a run."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        decode: Signature,
        caches: Mapping[Slot, np.ndarray],
        length: int,
        rows: int,
    ) -> None:
        """rows: of logits."""
        self._session = session
        self._binding = session.io_binding()
        tokens, position, logits = decode.input("tokens"), decode.input("position"), decode.output("logits")
        assert tokens and position and logits  # noqa: PT018
        self._tokens = np.zeros((1, length), tokens.dtype)
        self._position = np.zeros(1, position.dtype)
        self._logits = np.zeros((1, rows, logits.shape[-1]), logits.dtype)
        memory = {"tokens": self._tokens, "position": self._position, "logits": self._logits}
        for ends, bind in (
            (decode.inputs, self._binding.bind_input),
            (decode.outputs, self._binding.bind_output),
        ):
            for end in ends:
                array = caches[end.slot] if end.slot in caches else memory[end.kind]
                bind(end.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self, tokens: Sequence[int] | int, position: int) -> None:
        """Feed these ids, from `position` on."""
        self._tokens[0] = tokens
        self._position[0] = position
        self._session.run_with_iobinding(self._binding)

    @property
    def logits(self) -> np.ndarray:
        """Those of the last run, [rows, V] float32; the next run overwrites them."""
        return self._logits[0].astype(np.float32, copy=False)


def pack(model: Path, packed: Path) -> None:
    """Write `model` to the new file `packed` and its data beside it: optimised, and the weights, too, in the
    order in which ONNX Runtime computes with them on this machine. So loading them maps the file, where
    otherwise they are copied.

    Raises ModelError.
    """
    options = _options(threads=1, debug=False)
    options.optimized_model_filepath = str(packed)
    for key, value in (
        ("session.save_external_prepacked_constant_initializers", "1"),
        ("session.optimized_model_external_initializers_file_name", f"{packed.name}.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        options.add_session_config_entry(key, value)
    with quiet():
        _session(model, options)


def _session(model: bytes | Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Raises ModelError."""
    told = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(told, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no base of their own
        raise ModelError(f"ONNX Runtime cannot take the model: {_reason(error)}") from error


def _options(threads: int, debug: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _TALKATIVE if debug else _SILENT
    return options


def _reason(error: Exception) -> str:
    """What it says, without its codes and what it adds for its own developers."""
    _, found, said = str(error).partition("[ONNXRuntimeError] : ")
    *_, said = said.split(" : ", 2) if found else [str(error)]
    return " ".join(said.split()) or repr(error)
