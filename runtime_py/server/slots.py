"""llama.cpp's `/slots/{id_slot}`: KV caches are saved to files, restored and erased."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from o2o.errors import ModelError
from runtime_py.server.errors import ApiError
from runtime_py.server.models import ServedModel
from runtime_py.server.responses import Json
from runtime_py.server.schemas import SlotRequest, parse
from runtime_py.server.service import Service, service_of
from runtime_py.server.thread_stream import Cancelled

_FILE_NAME = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)


async def change_slot(request: Request) -> Response:
    """Save, restore or erase a slot, as `action` in the query says.

    Args:
        request: A `SlotRequest`. It may have no body.

    Returns:
        The number of tokens, and of bytes.

    Raises:
        ApiError: The request is wrong, or the slot is in use.
    """
    service = service_of(request)
    fields = parse(SlotRequest, await request.body() or b"{}")
    model = service.models.find(fields.model or request.query_params.get("model"))
    number = request.path_params["id_slot"]
    if not re.fullmatch("[0-9]{1,9}", number) or int(number) >= model.admission.slots:
        slots = model.admission.slots
        raise ApiError(404, f"there is no slot {number[:20]!r}: slots are 0 to {slots - 1}", param="id_slot")
    action = request.query_params.get("action")
    if action not in ("save", "restore", "erase"):
        raise ApiError(400, "action must be save, restore or erase", param="action")
    file = None if action == "erase" else _file(service, fields.filename)

    def run(_: Cancelled) -> Iterator[dict[str, Any]]:
        yield _change(model, action, int(number), file)

    async with service.run(model, run) as batches:
        answers = [each async for batch in batches for each in batch]
    return Json(answers[0])


def _file(service: Service, name: str | None) -> Path:
    folder = service.settings.slot_save_path
    if folder is None:
        raise ApiError(501, "this server saves no slots: start it with --slot-save-path")
    if name is None or not _FILE_NAME.fullmatch(name):
        raise ApiError(400, "filename: give letters, digits, '.', '_' or '-', first no dot", param="filename")
    return folder / name


def _change(model: ServedModel, action: str, slot: int, file: Path | None) -> dict[str, Any]:
    rows = model.package.stored_rows
    begin = time.perf_counter()
    if file is None:
        return {"id_slot": slot, "n_erased": rows.erase(slot)}
    try:
        if action == "save":
            count = rows.save(slot, file)
            names = ("n_saved", "n_written", "save_ms")
        else:
            if not file.is_file():
                raise ApiError(400, f"there is no saved slot {file.name}", param="filename")
            count = rows.restore(slot, file)
            names = ("n_restored", "n_read", "restore_ms")
    except ModelError as error:
        raise ApiError(400, str(error).replace(str(file), file.name), param="filename") from error
    size, seconds = file.stat().st_size, time.perf_counter() - begin
    tokens, read, milliseconds = names
    answer = {"id_slot": slot, "filename": file.name, tokens: count, read: size}
    return {**answer, "timings": {milliseconds: seconds * 1000}}
