"""Runner of litert-torch: its file on LiteRT's CompiledModel, with KV caches updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.options import CpuOptions, HardwareAccelerator, Options
from ai_edge_litert.tensor_buffer import TensorBuffer

from bench.peers.runners.serving import serve

MASKED = -1e9


class LitertTorch:
    """See `Runner`."""

    def __init__(self, model: str, threads: int, capacity: int, **_: Any) -> None:
        # The weights are packed in memory once, for all signatures.
        cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=":memory")
        options = Options(HardwareAccelerator.CPU, cpu)
        self._model = CompiledModel.from_file(model, options=options)
        self._capacity = capacity
        self._names = self._model.get_signature_list()
        self._lengths = sorted(int(name.split("_")[1]) for name in self._names if name != "decode")
        details = self._model.get_input_tensor_details("decode")
        self._caches = {}
        for name in self._names["decode"]["inputs"]:
            if name.startswith("kv_cache"):
                buffer = self._model.create_input_buffer_by_name("decode", name)
                buffer.write(np.zeros(details[name]["shape"], np.float32))
                self._caches[name] = buffer
        self._buffers = {signature: self._buffers_of(signature) for signature in self._names}
        logits = self._model.get_output_tensor_details("decode")["logits"]
        self._vocab_size = int(logits["shape"][-1])

    def prefill(self, ids: Sequence[int]) -> int:
        """See `Runner`. Decode reads the last id, as prefills return no logits."""
        done = 0
        while done < len(ids) - 1:
            left = len(ids) - 1 - done
            length = min((one for one in self._lengths if one >= left), default=self._lengths[-1])
            count = min(length, left)
            self._run(f"prefill_{length}", [*ids[done : done + count], *[0] * (length - count)], done)
            done += count
        self._position = len(ids) - 1
        return self.decode(ids[-1])

    def decode(self, token: int) -> int:
        self._run("decode", [token], self._position)
        self._position += 1
        return int(self.logits().argmax())

    def logits(self) -> np.ndarray:
        return self._buffers["decode"][1]["logits"].read(self._vocab_size, np.float32)

    def _buffers_of(self, signature: str) -> tuple[dict[str, TensorBuffer], dict[str, TensorBuffer]]:
        inputs, outputs = (self._names[signature][direction] for direction in ("inputs", "outputs"))
        create_input = self._model.create_input_buffer_by_name
        create_output = self._model.create_output_buffer_by_name
        return (
            {name: self._caches.get(name) or create_input(signature, name) for name in inputs},
            {name: self._caches.get(name) or create_output(signature, name) for name in outputs},
        )

    def _run(self, signature: str, ids: Sequence[int], position: int) -> None:
        inputs, outputs = self._buffers[signature]
        positions = np.arange(position, position + len(ids), dtype=np.int32)
        seen = np.arange(self._capacity) <= positions[:, None]  # [T, S]
        inputs["tokens"].write(np.asarray([ids], np.int32))
        inputs["input_pos"].write(positions)
        inputs["mask"].write(np.where(seen, 0, MASKED).astype(np.float32)[None, None])
        index = self._model.get_signature_index(signature)
        self._model.run_by_index(index, list(inputs.values()), list(outputs.values()))


if __name__ == "__main__":
    serve(LitertTorch)
