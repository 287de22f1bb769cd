"""Read and write metrics.jsonl, the events of a phase."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from niels_gpt.storage import flush_to_disk, write_text

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a metrics file, without lines that are not events, such as one cut by a kill."""
    if path.is_file():  # reading a FIFO would wait for a writer
        yield from filter(None, map(parse_event, path.read_bytes().splitlines()))


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Append an event. A line that a full disk cuts short is removed again, and OSError raised."""
    line = (json.dumps(event) + "\n").encode()
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        if file.write(line) < len(line):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def sync_metrics(path: Path) -> None:
    """Flush all events to the disk, before the checkpoint that they lead up to is written."""
    with path.open("rb") as file:
        flush_to_disk(file.fileno())


def truncate_metrics(path: Path, step: int, *, evaluated: bool) -> None:
    """Drop the events after `step` and any line that a kill cut short; this takes no room on the disk.

    An evaluation at `step` stays only if the checkpoint of that step was `evaluated`.
    """
    path.touch()
    lines = path.read_bytes().splitlines(keepends=True)
    last = {"val": step if evaluated else step - 1}
    kept = [
        line
        for line in lines
        if line.endswith(b"\n")
        and (event := parse_event(line))
        and event["step"] <= last.get(event["event"], step)
    ]
    if lines[: len(kept)] == kept:
        os.truncate(path, sum(map(len, kept)))
    else:  # a bad line among good ones
        write_text(path, b"".join(kept).decode())


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line, or None if it has none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(event, dict) and isinstance(event.get("step"), int) and isinstance(event.get("event"), str)
    return event if good else None
