"""Hostile requests to a real server: each is refused, and the server stays up, as small as before."""

import json
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.processes import wait_until
from support.served import serving

from niels_gpt.device import read_proc_bytes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")]
COUNT = 2000
GOOD: dict[str, Any] = {"prompt": "a", "max_tokens": 1}
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MANY = 100 << 20
NUMBERS = (
    "n",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "logprobs",
)
WRONG = [True, "1", [], [1], {}, {"a": 1}, -(10**40), 10**40, 1e300]


def with_body(body: bytes) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def make_json(random: random.Random) -> bytes:
    """Return JSON, or nearly, that is not a request."""
    depth = random.randrange(200, 200_000)
    text = json.dumps(GOOD).encode()
    match random.randrange(9):
        case 0:
            return b"[" * depth
        case 1:
            return b'{"prompt": ' * depth + b'"a"' + b"}" * depth
        case 2:
            return json.dumps(GOOD | {random.choice(NUMBERS): random.choice(WRONG)}).encode()
        case 3:
            name = random.choice(["prompt", "model", "stop", "stream", "stream_options"])
            return json.dumps(GOOD | {name: random.choice([1, 1.5, [1], [None], [[]]])}).encode()
        case 4:
            at = random.randrange(len(text))
            return text[:at] + random.choice([b"\0", b"\xff", b"\xc0\x80", b"\x1b"]) + text[at:]
        case 5:
            return json.dumps(GOOD | {"prompt": "a\0" * random.randrange(1, 1000)}).encode()
        case 6:
            return b'{"prompt": "' + b"\\ud800" * random.randrange(1, 1000) + b'"}'
        case 7:
            number = random.choice([b"NaN", b"Infinity", b"-1e999", b"9" * 5000, b"0x1", b"1" * 4000])
            return b'{"prompt": "a", "%s": %s}' % (random.choice(NUMBERS).encode(), number)
    return text[: random.randrange(len(text))]


def make_bytes(random: random.Random) -> bytes:
    """Return what is not HTTP, or HTTP that contradicts itself."""
    lines = [
        random.randbytes(random.randrange(1, 3000)).replace(b"\n", b"") + b"\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models/..%2f..%2f%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * random.randrange(1 << 20, 1 << 21) + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 200_000 + b"\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n{}",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
        CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
        CHUNKED + b"f" * 40 + b"\r\n{}\r\n",
        with_body(b"{}").replace(b"application/json", b"text/plain"),
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
    ]
    return random.choice(lines)


def large(chunked: bool) -> Iterator[bytes]:
    """Yield a request of 100 MB."""
    yield CHUNKED if chunked else HEAD + b"Content-Length: %d\r\n\r\n" % MANY
    for _ in range(100):
        yield b"100000\r\n" + b" " * (1 << 20) + b"\r\n" if chunked else b" " * (1 << 20)
    yield b"0\r\n\r\n" if chunked else b""


def slowly(request: bytes) -> Iterator[bytes]:
    """Yield a request byte by byte, until the other side has had enough."""
    for at in range(len(request)):
        yield request[at : at + 1]
        time.sleep(0.5)


def send(port: int, parts: Iterable[bytes]) -> str:
    """Return the status of the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # it has answered, and closed the connection
        with connection.makefile("rb") as response:
            return response.readline().decode().partition(" ")[2][:3]


def test_2000_hostile_requests_are_refused_and_the_server_is_up(finished_run: Path, tmp_path: Path) -> None:
    rest = random.Random(0)
    slow = [HEAD, CHUNKED + b"5\r\n{", HEAD + b"Content-Length: 500\r\n\r\n" + b" " * 400]
    with serving(str(finished_run), cwd=tmp_path) as served, ThreadPoolExecutor(60) as patient:
        memory = read_proc_bytes(f"/proc/{served.child.pid}/status", "VmRSS")
        requests: list[Iterable[bytes]] = [large(chunked=n % 2 == 0) for n in range(10)]
        while len(requests) < COUNT - 60:
            requests.append([with_body(make_json(rest))] if rest.random() < 0.7 else [make_bytes(rest)])
        slowest = [patient.submit(send, served.port, slowly(slow[n % 3])) for n in range(60)]
        with ThreadPoolExecutor(16) as pool:
            statuses = Counter(pool.map(lambda parts: send(served.port, parts), requests))
        statuses.update(future.result() for future in slowest)
        assert statuses.total() == COUNT and all(status.startswith("4") for status in statuses), statuses
        assert statuses["408"] == 60 and statuses["413"] >= 10
        assert served.ask().status_code == 200
        served.client.close()
        assert read_proc_bytes(f"/proc/{served.child.pid}/status", "VmRSS") - memory < 100 << 20
        assert len(os.listdir(f"/proc/{served.child.pid}/fd")) < 40, "their connections are closed"


def test_a_client_that_does_not_read_its_answer_is_left(finished_run: Path, tmp_path: Path) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 16384, "ignore_eos": True, "logprobs": 20, "stream": True})
    with serving(str(finished_run), cwd=tmp_path) as served:
        files = f"/proc/{served.child.pid}/fd"
        time.sleep(1)  # until the connection that asked for its health is closed
        before = len(os.listdir(files))
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(with_body(body.encode()))
            connection.recv(1)
            assert len(os.listdir(files)) == before + 1
            wait_until(lambda: len(os.listdir(files)) == before, 60)
        assert served.ask().status_code == 200
