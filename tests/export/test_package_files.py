"""A package has all files that decide which tokens a text has, and the hub provides them."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest

from export.hub import WANTED
from export.package_files import FILES, copy_package_files, package_files, stale_package_files
from o2o.errors import UsageError
from runtime_py.text.chat_template import ChatTemplate
from runtime_py.text.tokenizer import load_tokenizer
from tests.runtime_py.tokenizers_on_disk import write_byte_level

OTHERS = ("model.safetensors", "training_args.bin", "README.md", "original/tokenizer.model")


def checkpoint(folder: Path) -> Path:
    """Write a tokenizer in which each file matters, and files that do not."""
    write_byte_level(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in vocabulary["merges"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    (folder / "added_tokens.json").write_text('{"<|im_start|>": 340}')
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<|im_start|>"}')
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
    (folder / "original").mkdir()
    for name in OTHERS:
        (folder / name).write_text("x")
    return folder


def test_a_package_has_the_tokenizer_of_its_checkpoint(tmp_path: Path) -> None:
    source, package = checkpoint(tmp_path / "checkpoint"), tmp_path / "package"
    copy_package_files(package, source)
    ours, theirs = load_tokenizer(package), load_tokenizer(source)
    text = "hi<|im_start|> Lily"
    assert ours.encode(text) == theirs.encode(text)
    assert 340 in ours.encode(text)
    assert ours.special_tokens == theirs.special_tokens
    render = ChatTemplate(package, ours.special_tokens).render
    assert render([{"role": "user", "content": "hi"}]) == "<|im_start|>hi"
    assert ChatTemplate(package, ours.special_tokens, template="rag").render([]) == "rag"
    copied = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert copied == there - set(OTHERS)


def test_a_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    """It replaces the checkpoint's; the configuration stays the checkpoint's."""
    source, other = checkpoint(tmp_path / "checkpoint"), tmp_path / "other"
    (source / "config.json").write_text("of the checkpoint")
    other.mkdir()
    (other / "config.json").write_text("of the tokenizer")
    with pytest.raises(UsageError, match=r"has no tokenizer\.json and no tokenizer\.model"):
        package_files(source, other)
    (other / "tokenizer.json").write_text("a tokenizer")
    package = tmp_path / "package"
    copy_package_files(package, source, tokenizer=other)
    names = {path.name for path in package.iterdir()}
    assert names == {"config.json", "tokenizer.json"}
    assert (package / "config.json").read_text() == "of the checkpoint"
    (package / "vocab.json").write_text("of an earlier tokenizer")
    assert stale_package_files(package, source, other) == [package / "vocab.json"]


@pytest.mark.parametrize(
    ("name", "target"), [("llama.model", "tokenizer.model"), ("t.json", "tokenizer.json")]
)
def test_a_tokenizer_of_one_file(name: str, target: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a tokenizer")
    assert package_files(tmp_path, tmp_path / name) == {Path(target): tmp_path / name}


def test_a_tokenizer_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        package_files(tmp_path, tmp_path / "missing")
    (tmp_path / "picture.png").write_text("x")
    with pytest.raises(UsageError, match=r"give a folder, or a \.json or \.model file"):
        package_files(tmp_path, tmp_path / "picture.png")


def test_into_its_own_folder(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "checkpoint")
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    copy_package_files(source, source)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_the_hub_provides_them() -> None:
    for name in FILES:
        assert any(fnmatch(name.replace("*", "rag"), pattern) for pattern in WANTED), name
