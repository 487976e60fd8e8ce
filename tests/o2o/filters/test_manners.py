"""Every filter that there is has good manners (`tests.o2o.filters.manners`)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from o2o import filters, formats
from o2o.lower.litert import lower_to_litert
from o2o.model import Model
from tests.o2o.filters.manners import Manners, sample_data
from tests.o2o.filters.test_pack_litertlm import signed_model, tokenizer_folder
from tests.o2o.filters.test_rename_io_remove_namespace import from_tico
from tests.o2o.filters.test_select_op import chain
from tests.o2o.fused_graphs import Form, attention
from tests.o2o.graphs import decoder
from tests.o2o.language_model_graphs import language_model
from tests.o2o.lower.onnx.decoders import plain as one_token
from tests.o2o.onnx_graphs import chain as onnx_chain
from tests.o2o.onnx_graphs import data_of
from tests.o2o.window_graphs import window_model

# A file of the little decoder, for all tests of a process.
DECODER = str(Path(tempfile.mkdtemp(), "decoder.circle"))
Path(DECODER).write_bytes(sample_data("decoder"))


def filtered_decoder() -> Model:
    """The little decoder with a history."""
    model = decoder()
    model.history = [{"filter": "gc.py", "arguments": [], "version": "0", "input": f"sha256:{0:064}"}]
    return model


# What a run that succeeds on the little decoder needs, where that is anything at all.
GIVEN: dict[str, dict[str, Any]] = {
    "window_kvcache": {"model": staticmethod(window_model)},
    "bucket_kvcache": {
        "arguments": ["--capacities", "4"],
        "model": staticmethod(lambda: lower_to_litert(attention(Form(layout="BNTH")))),
    },
    "check_models": {"arguments": [DECODER], "writes_model": False},
    "diff_model": {
        "arguments": ["--json", DECODER],
        "writes_model": False,
        "answers_by_code": True,
        "folder_refused": (2, "Is a directory: give a file in it"),
    },
    "fix_shape": {
        "arguments": ["B=1", "T=2"],
        "model": staticmethod(lambda: formats.loads(data_of(onnx_chain()))),
    },
    "history_model": {"writes_model": False, "model": staticmethod(filtered_decoder)},
    "inspect": {
        "writes_model": False,
        "folder_refused": (2, "this folder has no model.circle and no model.tflite"),
    },
    "legalize_onert": {"model": staticmethod(language_model)},
    "lower_onnx": {"model": staticmethod(one_token), "writes_model": False},
    "pack_litertlm": {
        "arguments": ["--tokenizer", str(tokenizer_folder(Path(DECODER).parent / "words"))],
        "model": staticmethod(signed_model),
        "writes_model": False,
        "folder_refused": (2, "this folder has no model.tflite"),
    },
    "raise_circle": {
        "model": staticmethod(lambda: lower_to_litert(decoder())),
        "turns_tflite_into": "circle",
    },
    "reduce_model": {"trailing": ["--", "false"], "model": staticmethod(chain)},
    "remove_io": {"arguments": ["output", "--keep_by_id", "0"]},
    "rename_io": {"arguments": ["input", "input_ids=tokens"]},
    "rename_io_remove_namespace": {"model": staticmethod(lambda: from_tico(("tico::x", "y")))},
    "rename_io_remove_prefix": {"arguments": ["input_"]},
    "reorder_output": {"arguments": ["--by_id", "1,0"]},
    "reshape_io": {"arguments": ["input", "--by_shape", "[1,4]", "[4,1]"]},
    "resize_tokens": {"arguments": ["--tokens", "2"], "model": staticmethod(language_model)},
    "sign_ai_edge": {"model": staticmethod(language_model)},
    "verify_model": {"writes_model": False, "answers_by_code": True},
    "sign_contract": {"model": staticmethod(language_model)},
    "select_op": {"arguments": ["--by_id", "0-1", "--signature", "decode"]},
}

for _name in filters.names():
    _class = f"Test{_name.title().replace('_', '')}"
    globals()[_class] = type(_class, (Manners,), {"module": _name, **GIVEN.get(_name, {})})
