"""Files of more than 2 GiB, for real: how they go through filters, in how much memory, what is said of them.

Their constants are holes with a few bytes here and there, so that they take no disk before they are copied.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest

from o2o import formats
from o2o.filters import inspect
from o2o.formats.writer import FLATBUFFER_LIMIT, plan
from tests.o2o.graphs import Graph
from tests.peak import command, peak

FLOAT = ir.DataType.FLOAT
ROWS = {"first": 330_000, "unused": 5_000, "second": 200_000}  # of 1024 floats
MIB = 1 << 20


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """y = x first', z = x second': a file of 2.04 GiB. Each constant begins and ends with its name."""
    graph = Graph("main")
    x = graph.input("x", [1, 1024])
    for name, rows in ROWS.items():
        shape = ir.Shape([rows, 1024])
        tensor = ir.LazyTensor(lambda: pytest.fail("made"), FLOAT, shape, name=name)
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(FLOAT), const_value=tensor)
        graph.ir.register_initializer(value)
        if name != "unused":
            graph.output(graph.fc(x, value, f"y_{name}"))
    planned = plan(graph.model())
    path = tmp_path_factory.mktemp("big") / "big.circle"
    with open(path, "wb") as file:
        file.write(planned.tables)
        file.truncate(planned.size)
        for segment in planned.segments:
            if not isinstance(segment.payload, bytes):
                mark = (segment.payload.name or "").encode()
                for place in (segment.start, segment.start + segment.payload.nbytes - len(mark)):
                    os.pwrite(file.fileno(), mark, place)
    yield path
    for file in path.parent.iterdir():
        file.unlink()


def marks(path: Path) -> dict[str, tuple[int, bytes, bytes]]:
    """By constant: where it is, and the marks at its ends."""
    result = {}
    for name, value in formats.load(path).graphs[0].initializers.items():
        span, size = value.const_value.span, len(name)  # type: ignore[union-attr]
        with open(path, "rb") as file:
            edges = [os.pread(file.fileno(), size, p) for p in (span.start, span.start + span.size - size)]
        assert span.outside
        result[name] = (span.start, *edges)
    return result  # type: ignore[return-value]


def test_through_filters_in_little_memory(big: Path) -> None:
    """From file to file, and through a pipe, whose result is compared as it comes."""
    out = big.parent / "out.circle"
    done = subprocess.run(command("gc", big, "-o", out), stderr=subprocess.PIPE, check=True)
    assert done.stderr.startswith(b"gc.py: removed 1 constant; 20,480,000 bytes of constants\n")
    assert peak(done.stderr) < 200 * MIB
    assert out.stat().st_size > FLATBUFFER_LIMIT
    result = marks(out)
    assert {name: edges for name, (_, *edges) in result.items()} == {
        name: [name.encode()] * 2 for name in ("first", "second")
    }
    assert result["second"][0] < marks(big)["second"][0]

    with (
        subprocess.Popen(["cat", big], stdout=subprocess.PIPE) as cat,
        subprocess.Popen(
            command("gc", "-"), stdin=cat.stdout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as gc,
        subprocess.Popen(["cmp", "-", out], stdin=gc.stdout, stdout=subprocess.PIPE) as compared,
    ):
        for process in (cat, gc):
            assert process.stdout is not None
            process.stdout.close()
        assert compared.stdout is not None
        assert gc.stderr is not None
        assert (compared.stdout.read(), compared.wait()) == (b"", 0), "differs from file to file"
        assert peak(gc.stderr.read()) < 200 * MIB
    assert [process.returncode for process in (cat, gc)] == [0, 0]
    out.unlink()


def test_what_is_said_of_it(big: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(ROWS.values()) * 4096
    assert inspect.main([str(big)]) == 0
    text = capsys.readouterr().out
    assert f"big.circle: Circle, {big.stat().st_size:,} bytes, 1 subgraph" in text
    expected = f"{size:,} bytes by offset, beyond what FlatBuffers address (float32 {size:,})"
    assert f"constants: 3 in 3 buffers, {expected}" in text
    assert inspect.main([str(big), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["constants"]
    assert (summary["form"], summary["bytes"]) == ("by offset", size)
    done = subprocess.run(command("inspect", big), capture_output=True, check=True)
    assert peak(done.stderr) < 200 * MIB


def test_what_does_not_come_whole_is_no_model(big: Path) -> None:
    """2 GiB of more than that."""
    script = f"head -c {2 << 30} {big} | {shlex.join(command('gc', '-', '-o', '/dev/null'))}"
    done = subprocess.run(["bash", "-c", script], capture_output=True)
    assert done.returncode == 1
    assert b"gc.py: <stdin>: truncated" in done.stderr
