"""The manners of a filter, as tests that every one of them passes.

    class TestGc(Manners):
        module = "gc"

`arguments` and `model` are what a run that succeeds is given. Most tests run the command in this process, on
real files and pipes behind `sys.stdin` and `sys.stdout`; `test_processes.py` holds the few that need a
process of their own.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import pytest

from o2o import filters, formats
from o2o.cli.pipelines import Pipeline
from o2o.filters import pipeline
from o2o.filters.base import Filter
from o2o.model import Model
from o2o.streams import MemorySource
from o2o.verifier.verify import verify
from tests.conftest import ROOT
from tests.o2o.formats.tico import verifier_errors
from tests.o2o.graphs import SAMPLES, decoder

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(40)


@functools.cache
def sample_data(name: str) -> bytes:
    """The file of a sample, written once for all filters."""
    return formats.dumps(SAMPLES[name]())


@dataclass
class Outcome:
    """What a command left behind: its exit code, stdout and stderr."""

    code: int
    out: bytes
    err: str

    def failed(self, code: int) -> str:
        """The one line of a failure with exit code `code`, which had nothing for stdout."""
        assert (self.code, self.out) == (code, b"")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        assert "internal error" not in self.err
        return self.err


class Manners:
    module: ClassVar[str]
    arguments: ClassVar[Sequence[str]] = ()
    trailing: ClassVar[Sequence[str]] = ()  # behind all other arguments
    model: ClassVar[Callable[[], Model]] = staticmethod(decoder)
    writes_model: ClassVar[bool] = True
    folder_refused: ClassVar[tuple[int, str]] = (1, "Is a directory: give a file in it")
    turns_tflite_into: ClassVar[str] = "tflite"
    answers_by_code: ClassVar[bool] = False  # 1 is an answer, with text on stdout

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.patch = tmp_path, monkeypatch

    @property
    def filter(self) -> type[Filter]:
        return filters.load(self.module)

    @classmethod
    @functools.cache
    def given(cls) -> bytes:
        """The file of `model`, written once for all tests of the filter."""
        return formats.dumps(cls.model())

    @property
    def data(self) -> bytes:
        return self.given()

    def run(self, *arguments: str, stdin: bytes = b"", stdout: BinaryIO | None = None) -> Outcome:
        """Run the command in this process, with files as its standard streams."""
        return self.captured(lambda: self.filter.main([*arguments, *self.trailing]), stdin, stdout)

    def run_filter(self, module: str, *arguments: str, stdin: bytes = b"") -> Outcome:
        """Run another filter."""
        return self.captured(lambda: filters.load(module).main(list(arguments)), stdin)

    def captured(self, main: Callable[[], int], stdin: bytes, stdout: BinaryIO | None = None) -> Outcome:
        """Run a command in this process, with files as its standard streams."""
        (self.directory / "stdin").write_bytes(stdin)
        out, err = self.directory / "stdout", io.StringIO()
        with open(self.directory / "stdin", "rb") as source, open(out, "w+b") as sink:
            self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(source.raw)))  # type: ignore
            self.patch.setattr(sys, "stdout", io.TextIOWrapper(stdout or sink))
            self.patch.setattr(sys, "stderr", err)
            try:
                code = main()
                sys.stdout.flush()
            finally:
                for stream in (sys.stdin, sys.stdout):
                    stream.detach()
                self.patch.undo()
        return Outcome(code, out.read_bytes(), err.getvalue())

    def filtered(self, stdin: bytes, *more: str) -> Outcome:
        return self.run(*self.arguments, "-", *more, stdin=stdin)

    # ---- what it says of itself --------------------------------------------------------------------

    def test_help_has_a_drawing_and_an_example(self) -> None:
        outcome = self.run("--help")
        assert (outcome.code, outcome.err) == (0, "")
        text = outcome.out.decode()
        drawing = [
            line for line in text.splitlines() if line.startswith("    ") and re.search(r"--|=>", line)
        ]
        assert drawing, "a before/after drawing, indented by four"
        assert any("=>" in line for line in drawing), "an arrow between before and after"
        assert f"example:\n  {self.filter.usage_example}" in text
        assert self.filter.name in self.filter.usage_example
        assert max(map(len, text.splitlines())) <= 110

    def test_docstring_starts_with_what_it_does(self) -> None:
        first = (inspect.getdoc(self.filter) or "").splitlines()[0]
        assert first.endswith(".")
        assert len(first) <= 105

    def test_its_command_is_installed_under_its_name(self) -> None:
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        assert scripts[self.filter.name] == "o2o.__main__:script"
        assert filters.find(self.filter.name) == self.module

    # ---- success -----------------------------------------------------------------------------------

    def test_writes_a_model_and_its_history(self) -> None:
        first, second = self.filtered(self.data), self.filtered(self.data)
        assert first.code == 0, first.err
        assert first == second, "the same input and arguments give the same bytes"
        if self.writes_model and not self.filter.records_history:
            assert formats.loads(first.out).history == formats.loads(self.data).history
        elif self.writes_model:
            entry = formats.loads(first.out).history[-1]
            assert entry["filter"] == self.filter.name
            assert entry["arguments"][: len(self.arguments)] == list(self.arguments)
            assert set(entry) == {"filter", "arguments", "version", "input"}

    def test_a_file_a_pipe_and_an_output_file_are_the_same(self) -> None:
        source, target = self.directory / "in.circle", self.directory / "out.circle"
        source.write_bytes(self.data)
        piped = self.filtered(self.data)
        if self.module != "merge_circles":  # which names signatures after files
            out = self.run(*self.arguments, str(source))
            assert out.code == 0, out.err
            if self.writes_model:
                assert out.out == piped.out
        filed = self.filtered(self.data, "-o", str(target))
        assert (filed.code, filed.out) == (0, b"")
        assert target.read_bytes() == piped.out
        assert sorted(path.name for path in self.directory.glob("*out.circle*")) == ["out.circle"]

    @pytest.mark.parametrize("sample", ["", *sorted(SAMPLES)])
    def test_in_a_pipeline_of_one_process_it_writes_the_same_bytes(self, sample: str) -> None:
        first = self.run_filter("gc", "-", stdin=sample_data(sample) if sample else self.data)
        alone = self.filtered(first.out)
        words = [["gc"], [self.filter.name, *self.arguments, "-", *self.trailing]]
        if alone.code == 0 and self.writes_model:
            alone = self.run_filter("gc", "-", stdin=alone.out)
            words.append(["gc"])
        (self.directory / "first").write_bytes(sample_data(sample) if sample else self.data)
        piped = self.captured(
            lambda: pipeline.run([Pipeline(words, str(self.directory / "first"), None)]), stdin=b""
        )
        assert piped.code == alone.code, (piped.err, alone.err)
        assert piped.out == alone.out

    @pytest.mark.parametrize("sample", sorted(SAMPLES))
    def test_takes_or_refuses_anything_that_a_file_can_hold(self, sample: str) -> None:
        outcome = self.filtered(sample_data(sample))
        if self.answers_by_code and outcome.code == 1:
            assert (outcome.out != b"", outcome.err) == (True, "")
        elif outcome.code:
            outcome.failed(outcome.code)
        elif self.writes_model:
            assert formats.dumps(formats.loads(outcome.out)) == outcome.out

    def test_tico_accepts_the_result(self) -> None:
        """Samsung's reader verifies it: constants inline, and by offset as in a file of gigabytes."""
        outcome = self.filtered(self.data)
        assert outcome.code == 0, outcome.err
        if not self.writes_model or (model := formats.loads(outcome.out)).format != "circle":
            return
        by_offset = io.BytesIO()
        formats.write(model, by_offset, limit=0)
        for data in (outcome.out, by_offset.getvalue()):
            assert verifier_errors(data) == []

    def test_the_verifier_accepts_the_result(self) -> None:
        """No rule of verify.model.py is broken, for any input that the filter takes."""
        if not self.writes_model:
            return
        for data in (self.data, *map(sample_data, ("blockwise", "conditional", "odd_names", "quantized"))):
            outcome = self.filtered(data)
            if outcome.code == 0:
                issues = verify(MemorySource(outcome.out))
                assert [issue.text() for issue in issues if issue.severity == "error"] == []

    # ---- failure -----------------------------------------------------------------------------------

    def test_empty_input(self) -> None:
        assert "is empty" in self.filtered(b"").failed(self.filter.failure_code)

    @pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
    def test_truncated_input(self, share: float) -> None:
        data = self.data
        message = self.filtered(data[: max(int(len(data) * share), 8)]).failed(self.filter.failure_code)
        assert "truncated" in message

    def test_no_model_at_all(self) -> None:
        assert "a PNG image" in self.filtered(PNG).failed(self.filter.failure_code)
        assert "something else" in self.filtered(b"Once upon a time").failed(self.filter.failure_code)

    def test_the_other_format(self) -> None:
        model = self.model()
        model = decoder() if model.format == "onnx" else model
        model.format = "tflite"
        outcome = self.filtered(formats.dumps(model))
        if "tflite" in self.filter.input_formats:
            assert outcome.code in (0, int(self.answers_by_code)), outcome.err
            assert not self.writes_model or formats.loads(outcome.out).format == self.turns_tflite_into
        else:
            needed = self.filter.input_formats[0]
            complaint = f"a tflite model, but this filter needs {needed}"
            assert complaint in outcome.failed(self.filter.failure_code)

    def test_unknown_flag(self) -> None:
        assert "--no-such-flag" in self.run(*self.arguments, "-", "--no-such-flag").failed(2)

    def test_missing_file(self) -> None:
        missing = str(self.directory / "missing.circle")
        assert f"{missing}: No such file or directory" in self.run(*self.arguments, missing).failed(
            self.filter.failure_code
        )

    def test_a_folder_instead_of_a_file(self) -> None:
        code, complaint = self.folder_refused
        assert complaint in self.run(*self.arguments, str(self.directory)).failed(code)

    def test_no_folder_for_the_output(self) -> None:
        target = str(self.directory / "nowhere" / "out.circle")
        message = self.filtered(self.data, "-o", target).failed(self.filter.failure_code)
        assert f"{target}: No such file or directory" in message

    def test_full_disk(self) -> None:
        assert "No space left on device" in self.filtered(self.data, "-o", "/dev/full").failed(
            self.filter.failure_code
        )

    def test_full_disk_on_stdout(self) -> None:
        with open("/dev/full", "wb") as full:
            outcome = self.run(*self.arguments, "-", stdin=self.data, stdout=full)
        assert "No space left on device" in outcome.failed(self.filter.failure_code)

    def test_closed_pipe(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as pipe:
            outcome = self.run(*self.arguments, "-", stdin=self.data, stdout=pipe)
        assert (outcome.code, outcome.err) == (141, "")

    def test_the_old_file_stays_when_it_fails(self) -> None:
        target = self.directory / "out.circle"
        target.write_bytes(b"old")
        self.filtered(self.data[:300], "-o", str(target)).failed(self.filter.failure_code)
        assert target.read_bytes() == b"old"
        if self.writes_model:
            self._fail_while_writing(target)
        assert target.read_bytes() == b"old"
        left = {path.name for path in self.directory.iterdir()} - {"stdin", "stdout", "out.circle"}
        assert not left, "nothing is left beside it"

    def _fail_while_writing(self, target: Path) -> None:
        def write(plan: object, sink: BinaryIO, **_: object) -> None:
            sink.write(b"half a model")
            raise OSError(28, "No space left on device")

        data = self.data
        self.patch.setattr("o2o.formats.writer.Plan.write", write)
        assert "No space left" in self.filtered(data, "-o", str(target)).failed(self.filter.failure_code)

    def test_debug_shows_where(self) -> None:
        outcome = self.filtered(b"", "--debug")
        assert outcome.code == self.filter.failure_code
        assert outcome.out == b""
        assert outcome.err.startswith("Traceback")
        assert outcome.err.splitlines()[-1].startswith(f"{self.filter.name}: ")
