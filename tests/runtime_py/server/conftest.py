"""A client of a server that offers the toy package."""

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
