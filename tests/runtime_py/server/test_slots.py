"""llama.cpp's `/slots`: KV caches are saved, restored and erased."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.runtime_py.server.conftest import MakeClient

LONG = "what is the capital of france?"
OTHER = "what is the capital of italy?"


@pytest.fixture
def client(make_client: MakeClient, tmp_path: Path) -> TestClient:
    (tmp_path / "slots").mkdir()
    return make_client(parallel=3, slot_save_path=tmp_path / "slots")


def computed(client: TestClient, slot: int, prompt: str) -> tuple[int, str]:
    response = client.post("/completion", json={"prompt": prompt, "id_slot": slot, "n_predict": 4})
    return response.json()["timings"]["prompt_n"], response.json()["content"]


def change(client: TestClient, slot: object, action: str, **fields: Any) -> Any:
    response = client.post(f"/slots/{slot}?action={action}", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_saved_rows_are_used_after_a_restart(
    client: TestClient, make_client: MakeClient, tmp_path: Path
) -> None:
    whole, text = computed(client, 1, LONG)
    saved = change(client, 1, "save", filename="france.bin")
    assert saved["n_saved"] == whole + 3
    assert saved["n_written"] == (tmp_path / "slots" / "france.bin").stat().st_size
    other = make_client(parallel=3, slot_save_path=tmp_path / "slots")
    restored = change(other, 2, "restore", filename="france.bin")
    assert (restored["n_restored"], restored["n_read"]) == (whole + 3, saved["n_written"])
    assert computed(other, 2, OTHER) == (computed(client, 1, OTHER)[0], computed(client, 0, OTHER)[1])
    assert change(other, 0, "restore", filename="france.bin")["id_slot"] == 0
    assert computed(other, 0, LONG) == (1, text)


def test_erased_rows_are_computed_again(client: TestClient) -> None:
    whole, text = computed(client, 1, LONG)
    assert computed(client, 1, LONG) == (1, text)
    assert change(client, 1, "erase") == {"id_slot": 1, "n_erased": whole + 3}
    assert computed(client, 1, LONG) == (whole, text)
    assert client.post("/slots/1?action=erase").json()["n_erased"] == whole + 3


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("/slots/0?action=save", {"filename": "a"}, 400, "slot 0 is empty"),
        ("/slots/0?action=save", {"filename": "../a"}, 400, "filename"),
        ("/slots/0?action=save", {"filename": ".a"}, 400, "filename"),
        ("/slots/0?action=save", {"filename": "a\n"}, 400, "filename"),
        ("/slots/0?action=save", {}, 400, "filename"),
        ("/slots/0?action=restore", {"filename": "none"}, 400, "no saved slot none"),
        ("/slots/0?action=restore", {"filename": "damaged"}, 400, "damaged is damaged"),
        ("/slots/3?action=erase", {}, 404, "slots are 0 to 2"),
        ("/slots/x?action=erase", {}, 404, "slots are 0 to 2"),
        ("/slots/0?action=delete", {}, 400, "save, restore or erase"),
        ("/slots/0", {}, 400, "save, restore or erase"),
    ],
)
def test_refusals(
    client: TestClient, tmp_path: Path, path: str, fields: dict[str, str], status: int, message: str
) -> None:
    (tmp_path / "slots" / "damaged").write_bytes(b"no rows")
    response = client.post(path, json=fields)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]
    assert str(tmp_path) not in response.text


def test_without_a_folder(make_client: MakeClient) -> None:
    response = make_client().post("/slots/0?action=save", json={"filename": "a"})
    assert response.status_code == 501
    assert "--slot-save-path" in response.json()["error"]["message"]
