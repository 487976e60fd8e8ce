"""The container: sections, their places, and damage."""

from __future__ import annotations

import io
import random
import struct

import pytest

from o2o.errors import ModelError
from o2o.litertlm.container import BLOCK, PREFILL_DECODE, Contents, plan_bundle, read_bundle
from o2o.streams import MemorySource

MODEL = {"model_type": PREFILL_DECODE}


def written(*sections: Contents, **items: str) -> bytes:
    sink = io.BytesIO()
    plan = plan_bundle(items, sections)
    plan.write(sink)
    assert len(sink.getvalue()) == plan.size
    return sink.getvalue()


def sample() -> bytes:
    return written(
        Contents.of("LlmMetadataProto", b"metadata"),
        Contents.of("TFLiteModel", bytes(range(200)) * 100, MODEL),
        Contents.of("GenericBinaryData", b"x", {"o2o.content": "é"}),
        producer="test",
    )


def test_what_is_written_is_read() -> None:
    bundle = read_bundle(MemorySource(sample()))
    assert (bundle.version, bundle.items) == ((1, 7, 0), {"producer": "test"})
    assert [(one.kind, one.size, one.items) for one in bundle.sections] == [
        ("LlmMetadataProto", 8, {}),
        ("TFLiteModel", 20_000, MODEL),
        ("GenericBinaryData", 1, {"o2o.content": "é"}),
    ]
    assert [one.start % BLOCK for one in bundle.sections] == [0, 0, 0]
    assert bundle.data(bundle.sections[0]) == b"metadata"
    assert bundle.language_model().view(1, 3).tolist() == [1, 2, 3]
    assert bundle.language_model().origin == bundle.sections[1].start


def test_the_same_sections_give_the_same_bytes() -> None:
    assert sample() == sample()


def test_many_sections_need_a_header_of_several_blocks() -> None:
    sections = [Contents.of("GenericBinaryData", str(number).encode()) for number in range(600)]
    bundle = read_bundle(MemorySource(written(*sections)))
    assert [bundle.data(one) for one in bundle.sections] == [str(number).encode() for number in range(600)]
    assert bundle.sections[0].start > BLOCK


def test_a_model_without_a_type_is_the_language_model() -> None:
    bundle = read_bundle(MemorySource(written(Contents.of("TFLiteModel", b"model"))))
    assert bundle.language_model().header.tobytes() == b"model"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ([], "no language model .*but no model at all"),
        ([Contents.of("TFLiteModel", b"x", {"model_type": "tf_lite_embedder"})], "but tf_lite_embedder"),
        (
            [Contents.of("TFLiteModel", b"x", MODEL), Contents.of("TFLiteWeights", b"y", MODEL)],
            "section of their own",
        ),
    ],
)
def test_a_file_without_a_model_that_can_be_read(sections: list[Contents], message: str) -> None:
    bundle = read_bundle(MemorySource(written(*sections), "some.litertlm"))
    with pytest.raises(ModelError, match=f"some.litertlm: .*{message}"):
        bundle.language_model()


def test_truncated_files() -> None:
    data = sample()
    for length in (8, 31, 40, 100, BLOCK, 2 * BLOCK + 5, len(data) - 1):
        with pytest.raises(ModelError, match="truncated LiteRT-LM file"):
            read_bundle(MemorySource(data[:length]))


def test_damaged_headers_are_refused_or_read() -> None:
    """Any damage of the table gives a ModelError or another table, and nothing else."""
    data, rng, refused = sample(), random.Random(0), 0
    end = struct.unpack_from("<Q", data, 24)[0]
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.randrange(24, end)] = rng.randrange(256)
        try:
            read_bundle(MemorySource(changed))
        except ModelError:
            refused += 1
    assert refused > 50


def test_another_version_and_another_file() -> None:
    data = bytearray(sample())
    data[8] = 2
    with pytest.raises(ModelError, match=r"version 2, but this o2o reads version 1"):
        read_bundle(MemorySource(data))
    with pytest.raises(ModelError, match="no LiteRT-LM file: it starts with b'<svg"):
        read_bundle(MemorySource(b"<svg xmlns=.../>"))
