"""What `inspect.model.py` prints of a `.litertlm` file."""

from __future__ import annotations

import json
from pathlib import Path

from o2o.litertlm import read_bundle
from o2o.litertlm.summary import render, summarize
from o2o.streams import open_file
from tests.litertlm import pack, write_package


def test_the_sections_and_the_metadata(tmp_path: Path) -> None:
    file = pack(write_package(tmp_path / "toy"))
    summary = json.loads(json.dumps(summarize(read_bundle(open_file(file)))))
    kinds = [section["kind"] for section in summary["sections"]]
    assert kinds == ["LlmMetadataProto", "HF_Tokenizer_Zlib", "GenericBinaryData", "TFLiteModel"]
    assert (summary["metadata"]["start"], summary["metadata"]["max_tokens"]) == ([0], 16)
    first, *lines = render(summary, "toy.litertlm", 99).splitlines()
    assert first == "toy.litertlm: LiteRT-LM 1.7.0, 99 bytes, 4 sections"
    assert any("model_type=tf_lite_prefill_decode" in line for line in lines)
    assert any(line.split() == ["max_tokens", "16"] for line in lines)
