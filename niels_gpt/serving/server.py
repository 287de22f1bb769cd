"""The server process: its socket, its connections and its end."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from niels_gpt.errors import ConfigError
from niels_gpt.serving.worker import Worker

HEAD_SECONDS = 10.0  # for the head of a request
MAX_CONNECTIONS = 200
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens there. ConfigError if it cannot."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        hint = "choose another --port, or 0 for any that is free; the default --host is this machine's own"
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}", hint) from None


class Connection(H11Protocol):
    """A connection that ends if nothing happens between two checks while it is the client's turn.

    Uvicorn itself has no limit for the head of a request, nor for a client that does not read its answer.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to check it."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._last: tuple[object, int] = None, 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop checking."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        last, self._last = self._last, (self.cycle, self.transport.get_write_buffer_size())
        self._timer = self.loop.call_later(HEAD_SECONDS, self._check)
        if self._last == last and last[1]:
            self.transport.abort()
        elif self._last == last and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(TOO_SLOW)
            self.transport.close()


class _Server(uvicorn.Server):
    """Uvicorn's server, which stops when the command does."""

    def __init__(self, config: uvicorn.Config, worker: Worker, stop: Callable[[], bool]) -> None:
        super().__init__(config)
        self._worker, self._stop = worker, stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the command."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop."""
        return await super().on_tick(counter) or self._stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the answers, so that their connections can end."""
        self._worker.close()
        await super().shutdown(sockets)


def run_server(app: Starlette, worker: Worker, listening: socket.socket, stop: Callable[[], bool]) -> None:
    """Serve until `stop`; then end the answers, and return when they are sent or five seconds are over."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # or any client could fill the terminal
    config = uvicorn.Config(
        app, http=Connection, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, limit_concurrency=MAX_CONNECTIONS, timeout_graceful_shutdown=5,
    )  # fmt: skip
    _Server(config, worker, stop).run(sockets=[listening])
