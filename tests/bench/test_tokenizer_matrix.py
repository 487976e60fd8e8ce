"""The comparison of tokenizers: equal ones, and one with a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import tokenizer_matrix as bench
from tests.runtime_py.tokenizers_on_disk import write_byte_level


def test_the_strings_are_86_different_ones() -> None:
    assert len(set(bench.STRINGS)) == len(bench.STRINGS) == 86


def test_a_tokenizer_with_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_byte_level(tmp_path / "small")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools }}"
    )
    assert bench.main([str(folder)]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:8] == ["small", "TokenizersBackend", *["86/86"] * 4, "40/40", "5/5"]


def test_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_byte_level(tmp_path / "small")
    encode = bench.Tokenizer.encode
    monkeypatch.setattr(
        bench.Tokenizer,
        "encode",
        lambda self, text, special=True: encode(self, text.replace("\t", " "), special),
    )
    assert bench.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "small: ids: '\\t': [" in out
    assert "40/40" in out
