"""A toy package with a chat template, and a client of a server that offers it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from runtime_py.package import Package
from runtime_py.server.app import App
from runtime_py.server.settings import ServerSettings
from tests.runtime_py.tokenizers_on_disk import NUM_CHARACTERS, write_characters
from tests.runtime_py.toy import Toy

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}"
    "{% if tools %}{{ tools | length }} {% endif %}a"
)
VOCAB, CAPACITY = NUM_CHARACTERS, 160


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


@pytest.fixture
def package(folder: Path) -> Iterator[Package]:
    with Package.load(folder) as package:
        yield package


MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client(folder: Path) -> Iterator[MakeClient]:
    """Makes clients of new servers, by settings."""
    with ExitStack() as stack:

        def make(log: Callable[[str], None] = lambda line: None, **settings: Any) -> TestClient:
            options = ServerSettings(**settings)
            package = stack.enter_context(Package.load(folder, max_sessions=options.parallel))
            app = App({"toy": package}, options, log)
            return stack.enter_context(TestClient(app, base_url="http://127.0.0.1"))

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()
