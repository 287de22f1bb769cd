"""The process of one logger: forward the events of metrics.jsonl to it, as far as checkpoints cover them."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from train.artifacts.metrics import METRICS, parse_event
from train.artifacts.results import read_results
from train.cli.signals import ENDING
from train.loop.loggers.backend import Backend, LoggedPhase, Point
from train.loop.loggers.forwarding import FOLDER


def main() -> None:
    """Read the phase from the first line of stdin, and from each other one a step that a checkpoint covers."""
    for signum in ENDING:  # they are meant for the run, whose end closes stdin
        signal.signal(signum, signal.SIG_IGN)
    request = json.loads(sys.stdin.readline())
    signal.alarm(request["seconds"])  # ends this process when a call takes longer
    notes = Path(request["folder"], FOLDER, f"{request['logger']}.json")
    with FileLock(notes.with_suffix(".lock")):  # the process of a run that was killed may still write
        forwarder = Forwarder(request, notes)
        for line in sys.stdin:
            signal.alarm(request["seconds"])
            forwarder.forward(int(line))
            signal.alarm(0)
        signal.alarm(request["seconds"])
        forwarder.close()


class Forwarder:
    """Forward each event once. The file of notes has the run's id, and the last step of each event by phase."""

    def __init__(self, request: dict[str, Any], notes: Path) -> None:
        folder, phase, self._path, self._position = Path(request["folder"]), request["phase"], notes, 0
        self._out, self._total_steps = folder / phase, request["config"]["train"]["total_steps"]
        self._notes: dict[str, Any] = {"id": uuid4().hex[:8]}
        with suppress(OSError, ValueError):
            self._notes |= read_json(notes)
        self._last: dict[str, int] = self._notes.setdefault(phase, {})
        write_json(notes, self._notes)
        self._since = max(self._last.values(), default=0)
        before = read_results(folder).get("pretrain") if phase == "sft" else None
        logged_phase = LoggedPhase(
            id=self._notes["id"],
            name=folder.resolve().name,
            phase=phase,
            out=self._out,
            group=request["group"],
            config=flatten(request["config"], f"{phase}.") | {"commit": find_commit()},
            first=before.step if before else 0,
            since=self._since,
        )
        self._backend: Backend = import_module(f"train.loop.loggers.{request['logger']}").Logger(logged_phase)

    def forward(self, step: int) -> None:
        """Log the events up to a step that have not been logged."""
        again = self._since if self._backend.repeated == "replaced" else inf
        points = [p for p in self._read_points(step) if p.step > self._last.get(p.event, -1) or p.step >= again]
        if points:
            self._last |= {point.event: point.step for point in points}
            if self._backend.repeated == "kept":  # a kill then loses these points, and never doubles one
                write_json(self._path, self._notes)
            self._backend.log(points)
            write_json(self._path, self._notes)

    def close(self) -> None:
        """Hand on the picture of the curves, and end."""
        curves, complete = self._out / "curves.png", self._last.get("val", 0) >= self._total_steps
        self._backend.close(curves if curves.exists() else None, complete=complete)

    def _read_points(self, step: int) -> Iterator[Point]:
        """Yield the events up to a step, from where the last call ended."""
        with (self._out / METRICS).open("rb") as file:
            file.seek(self._position)
            for line in file:
                event = parse_event(line)
                if event and event["step"] > step:
                    break
                self._position += len(line)
                if event:
                    kind, at, time = event.pop("event"), event.pop("step"), event.pop("time", 0.0)
                    yield Point(kind, at, time, flatten(event, f"{self._out.name}/{kind}/"))


def flatten(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return nested values under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def find_commit() -> str | None:
    """Return the commit of the repository around the working folder, if there is one."""
    with suppress(OSError, subprocess.SubprocessError):
        git = ["git", "rev-parse", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    return None


if __name__ == "__main__":
    main()
