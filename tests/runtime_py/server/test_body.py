"""Bodies within limits, and clients that leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime_py.package import Package
from runtime_py.server.app import App
from runtime_py.server.settings import ServerSettings
from tests.runtime_py.server.conftest import MakeClient
from tests.runtime_py.server.live import post, read_all, send, serving, slow_down, wait_until

PATH = "/v1/completions"


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_refused(make_client: MakeClient, declared: bool) -> None:
    client = make_client(max_body=100)

    def parts() -> Iterator[bytes]:
        yield from [b" " * 60] * 3

    response = client.post(PATH, content=b" " * 101 if declared else parts())
    assert response.status_code == 413
    assert "--max-body" in response.json()["error"]["message"]
    assert client.post(PATH, content=b" " * 100).status_code == 400


def test_slow_bodies_and_clients_that_leave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = slow_down(monkeypatch, 0.01)
    settings = ServerSettings(port=0, parallel=1, body_timeout=0.2)
    with Package.load(folder, max_sessions=1) as package:
        app = App({"toy": package}, settings)
        admission = app.service.models.models["toy"].admission
        with serving(app, settings) as address:
            assert "408" in read_all(send(address, post(PATH, "{", length=10)))[:20]
            send(address, post(PATH, "{", length=10)).close()
            for stream in ("true", "false"):
                tokens.clear()
                leaving = send(address, post(PATH, f'{{"prompt": "hi", "stream": {stream}}}'))
                wait_until(lambda: len(tokens) > 2)
                waiting = send(address, post(PATH, '{"prompt": "hi", "max_tokens": 2}'))
                wait_until(lambda: admission.waiting == 1)
                leaving.close()
                assert '"finish_reason":"length"' in read_all(waiting)
                assert len(tokens) < 100, "the text of the client that left was not finished"
            queued = send(address, post(PATH, '{"prompt": "hi", "max_tokens": 40}'))
            wait_until(lambda: admission.running == 1)
            also = send(address, post(PATH, '{"prompt": "hi"}'))
            wait_until(lambda: admission.waiting == 1)
            also.close()
            wait_until(lambda: admission.waiting == 0)
            assert '"completion_tokens":40' in read_all(queued)
            wait_until(lambda: admission.running == 0)
        assert app.service.metrics.registry.get_sample_value("o2o_requests_cancelled_total") == 4
