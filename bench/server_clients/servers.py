"""A server in a process of its own, and requests to it."""

from __future__ import annotations

import http.client
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """A server in a process of its own.

    Attributes:
        process: The process.
        port: Its port.
    """

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> http.client.HTTPConnection:
        """Open a connection.

        Returns:
            The connection.
        """
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def complete(self, connection: http.client.HTTPConnection, **fields: Any) -> dict[str, Any]:
        """Send a request to `/v1/completions`.

        Args:
            connection: A connection.
            fields: The request.

        Returns:
            The response. While the server is busy, the request is sent again.
        """
        while True:
            connection.request("POST", "/v1/completions", json.dumps(fields))
            response = connection.getresponse()
            content: dict[str, Any] = json.loads(response.read())
            if response.status == 429:
                time.sleep(random.uniform(0.05, 0.2))
                continue
            if response.status != 200:
                raise AssertionError(f"status {response.status}: {content}")
            return content

    def stream(self, connection: http.client.HTTPConnection, **fields: Any) -> Iterator[float]:
        """Send a request for a stream.

        Args:
            connection: A connection.
            fields: The request.

        Yields:
            The time of each event with text.
        """
        connection.request("POST", "/v1/completions", json.dumps({**fields, "stream": True}))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        while (line := response.readline()) != b"data: [DONE]\n":
            assert line, "the stream ended without [DONE]"
            if line.startswith(b"data:"):
                yield time.perf_counter()
        response.read()

    @property
    def memory(self) -> float:
        """Megabytes of memory that no file backs."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"RssAnon:\s+(\d+) kB", status)
        return int(match[1]) / 1000 if match else 0.0

    @property
    def threads(self) -> int:
        """The number of threads."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    @property
    def files(self) -> int:
        """The number of open files and sockets."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def served(package: str, *flags: str) -> Iterator[Server]:
    """Serve a package.

    Args:
        package: The package.
        flags: Flags of `o2o serve`.

    Yields:
        The server.
    """
    command = [sys.executable, "-m", "runtime_py.serve", package, "--port=0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        match = None
        while match is None:
            line = process.stderr.readline()
            assert line, "the server ended"
            match = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield Server(process, int(match[1]))
    finally:
        process.terminate()
        process.wait()
