"""The application: its small endpoints, errors, ids of requests, metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from runtime_py.package import Package
from runtime_py.server.app import App
from tests.runtime_py.server.conftest import MakeClient


def test_health_and_models(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "toy"
    assert model["meta"]["chat"] is True
    assert client.get("/v1/models/toy").json() == model
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("DELETE", "/health", 405)],
)
def test_errors_have_openais_form(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"].keys() >= {"message", "type", "param", "code"}


def test_each_request_has_an_id_and_a_line(make_client: MakeClient) -> None:
    lines: list[str] = []
    client = make_client(lines.append)
    sent = client.post(
        "/v1/completions", json={"prompt": "hi", "max_tokens": 2}, headers={"X-Request-Id": "mine-1"}
    )
    assert sent.headers["x-request-id"] == "mine-1"
    own = client.get("/v1/models", headers={"X-Request-Id": "no\tid"})
    assert re.fullmatch("req-[0-9a-f]{16}", own.headers["x-request-id"])
    client.get("/health")
    assert len(lines) == 2, "health checks are not logged"
    assert lines[0].startswith("mine-1 POST '/v1/completions' 200 3 prompt tokens, 2 new tokens, ")


def test_metrics_count_requests_and_tokens(client: TestClient) -> None:
    client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 5})
    client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 5, "stream": True})
    client.get("/nothing")
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert samples["o2o_requests_total", "/v1/completions", "200"] == 2
    assert samples["o2o_requests_total", "other", "404"] == 1
    assert samples["o2o_generated_tokens_total", "toy"] == 10
    assert samples["o2o_prompt_tokens_total", "toy"] == 6
    assert samples["o2o_requests_running", "toy"] == 0


def test_internal_errors_show_nothing(
    client: TestClient, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    client = make_client(lines.append)

    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("runtime_py.server.completions.generate_texts", fail)
    response = client.post("/v1/completions", json={"prompt": "hi"})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert any("RuntimeError: secret" in line for line in lines)


def test_several_packages_are_loaded_when_they_are_asked_for(folder: Path) -> None:
    packages = {name: Package.load(folder) for name in ("one", "two")}
    with TestClient(App(packages), base_url="http://localhost") as client:

        def loaded() -> list[str]:
            return [each["id"] for each in client.get("/v1/models").json()["data"] if each["meta"]["loaded"]]

        assert loaded() == []
        for name in ("one", "two", "one"):
            response = client.post("/v1/completions", json={"prompt": "hi", "model": name, "max_tokens": 1})
            assert response.json()["model"] == name
            assert loaded() == [name]
        assert client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 1}).json()["model"] == "one"
