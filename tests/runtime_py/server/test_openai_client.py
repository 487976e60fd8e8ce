"""Python's `openai` against the server: chats, streams, structured output, tools, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_py.package import Package
from runtime_py.server.app import App
from runtime_py.server.settings import ServerSettings
from tests.runtime_py.server.live import serving
from tests.runtime_py.server.test_tools import TEMPLATES


def test_every_way_to_call_it(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    from bench.server_clients.openai_client import check

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["hermes"])
    settings = ServerSettings(port=0, api_keys=("key",))
    with Package.load(tmp_path) as package:
        app = App({"toy": package}, settings)
        with serving(app, settings) as (host, port):
            results = check(f"http://{host}:{port}/v1", "key")
    assert [name for name, passed in results.items() if not passed] == []
