"""Files in an archive behind a model: every filter keeps them, wherever the model comes from."""

from __future__ import annotations

import io
import os
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from o2o import formats
from o2o.errors import ModelError
from o2o.filters import gc, merge_circles, raise_circle, rename_io
from o2o.formats import associated_files
from o2o.formats.tensors import LARGE
from o2o.streams import source as sources
from tests.o2o.graphs import Graph, interpreter, linear

FILES = {"labels.txt": b"cat\ndog\n", "folder/vocabulary.txt": b"a b c " * 100}


def append_archive(model: bytes, files: dict[str, bytes] = FILES, comment: bytes = b"") -> bytes:
    """Append an archive as the tools of TFLite metadata do: its offsets count from the file's beginning."""
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 2, 3, 4, 6)), data)
    return buffer.getvalue()


def unframed(model: bytes) -> bytes:
    """The file without its frame, as another program would write it."""
    return model[:8] + bytes(8) + model[16:]


def archive_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        first = min(info.header_offset for info in archive.infolist())
        assert data[first : first + 4] == b"PK\3\4"  # offsets count from the file's beginning
        return {info.filename: archive.read(info) for info in archive.infolist()}


@pytest.fixture(params=["framed", "unframed"])
def model(request) -> bytes:
    data = formats.dumps(linear("tflite"))
    return append_archive(data if request.param == "framed" else unframed(data))


def test_they_survive_reading_and_writing(model: bytes) -> None:
    written = formats.dumps(formats.loads(model))
    assert archive_of(written) == FILES
    assert formats.dumps(formats.loads(written)) == written
    interpreter(written)


def test_a_longer_model_moves_the_archive(model: bytes) -> None:
    longer = formats.loads(model)
    longer.metadata.append(("note", bytes(1000)))
    written = formats.dumps(longer)
    assert len(written) > len(model) + 900
    assert archive_of(written) == FILES
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        assert archive.getinfo("labels.txt").date_time == (2026, 1, 2, 3, 4, 6)


@pytest.mark.parametrize(
    ("filter_", "flags"), [(gc, []), (raise_circle, []), (rename_io, ["input", "x=renamed"])]
)
def test_filters_keep_them(model: bytes, filter_, flags: list[str], tmp_path: Path) -> None:
    before, after = tmp_path / "a.tflite", tmp_path / "b.tflite"
    before.write_bytes(model)
    assert filter_.main([*flags, str(before), "-o", str(after)]) == 0
    assert archive_of(after.read_bytes()) == FILES


def piped(data: bytes, small: int) -> sources.PipeSource:
    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb") as sink:
            sink.write(data)

    threading.Thread(target=feed, daemon=True).start()
    source = sources.PipeSource(reader, "pipe", small)
    os.close(reader)
    return source


@pytest.mark.parametrize("small", [0, 1 << 20])
def test_they_come_through_a_pipe(model: bytes, small: int) -> None:
    assert archive_of(formats.dumps(formats.read(piped(model, small)))) == FILES


def test_a_pipe_that_passes_on_large_constants_refuses_what_follows() -> None:
    graph = Graph("main")
    x = graph.input("x", [LARGE])
    graph.output(graph.op("ADD", [x, graph.constant("c", np.zeros(LARGE, np.float32))], [LARGE], name="y"))
    source = piped(append_archive(formats.dumps(graph.model(format="tflite"))), small=0)
    assert formats.read(source).associated_files == []
    with pytest.raises(ModelError, match="bytes follow the model, perhaps an archive: read the file"):
        source.finish()


def test_megabytes_behind_a_model_in_a_pipe_are_refused() -> None:
    with pytest.raises(ModelError, match="bytes follow the model"):
        piped(formats.dumps(linear("tflite")) + bytes(3 << 20), small=1 << 20)


def test_an_archive_with_a_comment() -> None:
    model = append_archive(formats.dumps(linear("tflite")), comment=b"made by a tool" * 100)
    assert archive_of(formats.dumps(formats.loads(model))) == FILES


def test_the_mark_of_an_archive_in_a_constant_is_no_archive() -> None:
    graph = Graph("main")
    marks = np.frombuffer(b"PK\5\6" * 64, np.int32)
    x = graph.input("x", [64])
    graph.output(graph.op("ADD", [x, graph.constant("c", marks.view(np.float32))], [64], name="y"))
    data = unframed(formats.dumps(graph.model(format="tflite")))
    assert formats.loads(data).associated_files == []


def test_a_damaged_archive_is_refused(model: bytes) -> None:
    at = model.index(b"PK\3\4") + 30 + len("labels.txt")
    damaged = model[:at] + b"\xff\xff" + model[at + 2 :]
    with pytest.raises(ModelError, match="the archive of its associated files cannot be read"):
        formats.loads(damaged)


def test_files_that_do_not_fit_memory_are_refused(monkeypatch: pytest.MonkeyPatch, model: bytes) -> None:
    monkeypatch.setattr(associated_files, "LIMIT", 100)
    with pytest.raises(ModelError, match=r"its associated files have 608 bytes: the limit is 100"):
        formats.loads(model)


def test_merging_keeps_the_files_of_all_models(tmp_path: Path, capsys) -> None:
    first = append_archive(formats.dumps(linear("tflite")), {"a.txt": b"1", "b.txt": b"2"})
    second = append_archive(formats.dumps(linear("tflite")), {"b.txt": b"3", "c.txt": b"4"})
    for name, data in (("1.tflite", first), ("2.tflite", second)):
        (tmp_path / name).write_bytes(data)
    merged = tmp_path / "merged.tflite"
    names = [str(tmp_path / name) for name in ("1.tflite", "2.tflite")]
    assert merge_circles.main([*names, "--sig-names", "one,two", "-o", str(merged)]) == 0
    assert archive_of(merged.read_bytes()) == {"a.txt": b"1", "b.txt": b"2", "c.txt": b"4"}
    assert "its associated file 'b.txt' is dropped" in capsys.readouterr().err


def test_inspect_lists_them(model: bytes) -> None:
    from o2o.describe import render, summarize

    text = render(summarize(formats.loads(model)), "model.tflite", len(model))
    assert "labels.txt (8 bytes)" in text


def test_offsets_of_a_file_of_gigabytes() -> None:
    files = formats.loads(append_archive(formats.dumps(linear("tflite")))).associated_files
    archive = associated_files.pack_archive(files, start := 3_000_000_000)
    (offset,) = struct.unpack_from("<I", archive, archive.index(b"PK\5\6") + 16)
    assert start < offset < start + len(archive)
