"""A server on a socket of this machine, in a thread."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from runtime_py.generation.generate import generate
from runtime_py.server.app import App
from runtime_py.server.listener import configuration, listen
from runtime_py.server.settings import ServerSettings


@contextmanager
def serving(app: App, settings: ServerSettings) -> Iterator[tuple[str, int]]:
    """Serve an application. Yields the address."""
    with listen(settings) as listener:
        server = uvicorn.Server(configuration(app, settings))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[:2]
        finally:
            server.should_exit = True
            thread.join()


def send(address: tuple[str, int], text: str) -> socket.socket:
    """Send a request as it is."""
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(text.replace("\n", "\r\n").encode())
    return connection


def post(path: str, body: str, length: int | None = None) -> str:
    """Write a POST request."""
    return (
        f"POST {path} HTTP/1.1\nHost: localhost\nContent-Length: {length or len(body)}\n"
        f"Connection: close\n\n{body}"
    )


def read_all(connection: socket.socket) -> str:
    """Read until the end of the connection."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts).decode()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def slow_down(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[int]:
    """Make each token take longer. Returns the list of tokens, which grows."""
    tokens: list[int] = []

    def slowly(*args: object, **options: object) -> Iterator[object]:
        for token in generate(*args, **options):  # type: ignore[arg-type]
            time.sleep(seconds)
            tokens.append(token.id)
            yield token

    monkeypatch.setattr("runtime_py.server.texts.generate", slowly)
    return tokens
