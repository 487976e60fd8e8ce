"""A toy package with a chat template: a token for each character."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime_py.tokenizers_on_disk import NUM_CHARACTERS, write_characters
from tests.runtime_py.toy import Toy

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"
    "{% if tools %}{{ tools | length }} {% endif %}a"
)
VOCAB, CAPACITY = NUM_CHARACTERS, 700


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy(vocab=VOCAB, prefill_length=0, cached_lengths=[8], capacity=CAPACITY, seed=7)


@pytest.fixture(scope="session")
def folder(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "toy"
    write_characters(folder)
    (folder / "model.tflite").write_bytes(toy.file)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
