"""A server process: niels_gpt serve, on a port that is free."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
from support.processes import Child, start, wait_until


class Served:
    """A server process, and a client of it."""

    def __init__(self, child: Child, port: int, host: str) -> None:
        self.child, self.port = child, port
        self.client = httpx2.Client(base_url=f"http://{host}:{port}", timeout=60)

    def is_up(self) -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(self.client.base_url.join("/health")).status_code == 200
        return False

    def ask(self, **body: Any) -> httpx2.Response:
        """Ask for a completion."""
        return self.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2} | body)


@contextmanager
def serving(*words: str, cwd: Path, host: str = "127.0.0.1") -> Iterator[Served]:
    """Serve, and end the server; it is reached at `host`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    child = start(*words, "--port", str(port), script="serve", cwd=cwd)
    served = Served(child, port, host)
    try:
        wait_until(lambda: served.is_up() or not child.process.is_alive())
        yield served
    finally:
        served.client.close()
        if child.process.is_alive():
            child.process.terminate()
            child.process.join()


def read_events(lines: Iterator[str]) -> list[Any]:
    """Return the objects of a stream, which has its end."""
    *events, done = [line.removeprefix("data: ") for line in lines if line]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]
