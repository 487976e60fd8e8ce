"""The listener: addresses, and the end of the server."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from o2o.errors import UsageError
from runtime_py.server.listener import address, listen
from runtime_py.server.settings import ServerSettings
from tests.conftest import ROOT
from tests.runtime_py.server.live import post, read_all, send


def test_addresses() -> None:
    with listen(ServerSettings(port=0)) as listener:
        port = listener.getsockname()[1]
        assert address(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1, port {port}: .* --port"):
            listen(ServerSettings(port=port))


def test_a_signal_ends_the_server_after_the_running_request(folder: Path) -> None:
    command = [sys.executable, "-m", "runtime_py.serve", str(folder), "--port=0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stderr is not None
        match = re.search(r"http://127.0.0.1:(\d+)", process.stderr.readline())
        assert match
        stream = send(("127.0.0.1", int(match[1])), post("/v1/completions", '{"prompt":"hi","stream":true}'))
        begin = stream.recv(1)
        process.send_signal(signal.SIGTERM)
        assert "[DONE]" in begin.decode() + read_all(stream)
        assert process.wait(10) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
