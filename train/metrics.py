"""metrics.jsonl, the events of a phase: how they are read, and how much time each stands for."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

METRICS = "metrics.jsonl"


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a metrics file; a last line that a kill has torn is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            return


def seconds_after(tokens: Sequence[float], train_events: Sequence[dict[str, Any]]) -> list[float]:
    """Return the seconds of work that a phase took to see each number of `tokens`.

    The clock is made of the speeds, tokens over tokens a second from event to event, so that neither a resumed
    run's pause nor what it had to do twice counts. Between events it is linear; beyond the last it stands still.
    """
    seen, passed = [0.0], [0.0]
    for event in train_events:
        speed, more = event["tokens_per_second"], event["tokens"] - seen[-1]
        seen.append(event["tokens"])
        passed.append(passed[-1] + (more / speed if speed > 0 else 0.0))
    return [float(second) for second in np.interp(tokens, seen, passed)]
