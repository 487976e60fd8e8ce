"""JSON files with a table of types: one line names the file, the key, the type and the value."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o.errors import ModelError
from runtime_py.text.json_file import FLAG, NATURAL, NULL, NUMBER, TEXT, list_of, object_of, read_json

TYPES = {
    "text": TEXT | NULL,
    "flag": FLAG,
    "number": NUMBER,
    "natural": NATURAL,
    "list": list_of(TEXT),
    "object": object_of(NATURAL),
    "any_*": TEXT,
}


def read(folder: Path, content: str | bytes) -> dict[str, object]:
    path = folder / "file.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_json(path, TYPES)


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a", "flag": false, "number": 1.5, "natural": 0, "list": ["a"], "object": {"x": 1}}',
        '{"text": null, "number": 1000000000000000019884624838656, "list": [], "object": {}, "any_x": ""}',
        '{"other": [NaN, {"text": 5}]}',
        "{}",
    ],
)
def test_right_types(tmp_path: Path, content: str) -> None:
    assert isinstance(read(tmp_path, content), dict)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": 5}', "text must be a string or null, not 5"),
        ('{"text": true}', "text must be a string or null, not true"),
        ('{"flag": 1}', "flag must be true or false, not 1"),
        ('{"flag": "yes"}', 'flag must be true or false, not "yes"'),
        ('{"number": true}', "number must be a number, not true"),
        ('{"number": NaN}', "number must be a number, not NaN"),
        ('{"natural": -1}', "natural must be an integer from 0, not -1"),
        ('{"natural": 1.0}', "natural must be an integer from 0, not 1.0"),
        ('{"natural": true}', "natural must be an integer from 0, not true"),
        ('{"list": "abc"}', 'list must be a list (each element a string), not "abc"'),
        ('{"list": ["a", 5]}', 'list must be a list (each element a string), not ["a", 5]'),
        ('{"object": ["x"]}', 'object must be an object (each value an integer from 0), not ["x"]'),
        ('{"any_thing": []}', "any_thing must be a string, not []"),
    ],
)
def test_a_wrong_type(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ModelError) as error:
        read(tmp_path, content)
    assert str(error.value) == f"{tmp_path / 'file.json'}: {message}"


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        read(tmp_path, '{"text": [' + '"long", ' * 1000 + '"long"]}')
    assert len(str(error.value)) < len(str(tmp_path)) + 150


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{,",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"text": "\xff"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_no_json(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=r"file\.json is not JSON: [^\n]+$"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", ["[1]", "null", '"text"', "5"])
def test_no_object(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"file\.json is not a JSON object"):
        read(tmp_path, content)


def test_a_folder_and_no_file(tmp_path: Path) -> None:
    assert read_json(tmp_path / "file.json", TYPES) == {}
    (tmp_path / "file.json").mkdir()
    with pytest.raises(ModelError, match=r"file\.json is a folder, not a JSON file"):
        read_json(tmp_path / "file.json", TYPES)


@pytest.mark.parametrize("content", [r'{"\ud800": 1}', r'{"text": "a\udfff"}', r'{"a": [{"b": "\ud800"}]}'])
def test_a_lone_surrogate(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"file.json has the lone surrogate U\+D"):
        read(tmp_path, content)


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    assert read(tmp_path, r'{"text": "\ud83d\ude00"}') == {"text": "\N{GRINNING FACE}"}
