"""The listener: a socket, and uvicorn on it, until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from o2o.cli.interrupt import survive_interrupts
from o2o.errors import UsageError
from runtime_py.server.app import App
from runtime_py.server.settings import ServerSettings

BACKLOG = 2048


class _Server(uvicorn.Server):
    """Ends at the first signal when all responses are complete, at the second at once. The exit code is 0."""

    should_exit: bool
    force_exit: bool

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(app: App, settings: ServerSettings, log: Callable[[str], None]) -> int:
    """Serve an application until SIGINT or SIGTERM.

    Args:
        app: The application.
        settings: The address, and the time for running requests.
        log: Takes the line with the address.

    Returns:
        The exit code.

    Raises:
        UsageError: The address cannot be used.
    """
    listener = listen(settings)
    survive_interrupts()
    log(f"listening on {address(listener)}")
    with listener:
        _Server(configuration(app, settings)).run(sockets=[listener])
    return 0


def configuration(app: App, settings: ServerSettings) -> uvicorn.Config:
    """Return uvicorn's configuration.

    Args:
        app: The application.
        settings: The time for running requests.

    Returns:
        The configuration.
    """
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="on",
        http="h11",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )


def listen(settings: ServerSettings) -> socket.socket:
    """Open the socket.

    Args:
        settings: The address.

    Returns:
        The socket. Connections wait in it until the server runs.

    Raises:
        UsageError: The address cannot be used.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the number of TCP: asyncio sets TCP_NODELAY only then. Without it, a response takes 40 ms more.
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen on {settings.host}, port {settings.port}: {error.strerror}: choose others with "
            f"--host and --port"
        ) from error
    return listener


def address(listener: socket.socket) -> str:
    """Write the address of a socket.

    Args:
        listener: The socket.

    Returns:
        Its URL.
    """
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
