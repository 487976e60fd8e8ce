"""Access: Host, Origin, CORS and API keys."""

from __future__ import annotations

import pytest

from tests.runtime_py.server.conftest import MakeClient

EVIL = "https://evil.example"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("192.168.1.7:8080", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("box.example:1", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example@127.0.0.1", 403),
        ("127.0.0.1:port", 403),
        ("", 403),
    ],
)
def test_hosts(make_client: MakeClient, host: str, status: int) -> None:
    client = make_client(allowed_hosts=("box.example",))
    response = client.get("/health", headers={"Host": host})
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:1", "http://localhost", "file://"])
def test_pages_elsewhere_are_refused(make_client: MakeClient, origin: str) -> None:
    client = make_client()
    for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("OPTIONS", "/v1/completions")):
        response = client.request(method, path, headers={"Origin": origin})
        assert response.status_code == 403
        assert response.json()["error"]["type"] == "permission_error"
        assert "access-control-allow-origin" not in response.headers


def test_the_own_page_is_allowed(make_client: MakeClient) -> None:
    headers = {"Host": "localhost:8080", "Origin": "http://localhost:8080"}
    assert make_client().get("/v1/models", headers=headers).status_code == 200


def test_an_allowed_page_gets_cors(make_client: MakeClient) -> None:
    client = make_client(allowed_origins=("https://page.example",), api_keys=("key",))
    preflight = client.options(
        "/v1/completions",
        headers={
            "Origin": "https://page.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        },
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://page.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
    headers = {"Origin": "https://page.example", "Authorization": "Bearer key"}
    response = client.get("/v1/models", headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://page.example"
    assert response.headers["vary"] == "Origin"
    assert client.get("/v1/models", headers=headers | {"Origin": EVIL}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic second"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer second"}, 200),
        ({"Authorization": "bearer  first"}, 200),
        ({"X-Api-Key": "first"}, 200),
    ],
)
def test_keys(make_client: MakeClient, headers: dict[str, str], status: int) -> None:
    client = make_client(api_keys=("first", "second"))
    response = client.get("/v1/models", headers=headers)
    assert response.status_code == status
    assert client.post("/v1/completions", json={}, headers=headers).status_code == (
        400 if status == 200 else 401
    )
    assert client.get("/metrics", headers=headers).status_code == status
    assert client.get("/health").status_code == 200
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
