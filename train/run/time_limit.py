"""Limit the minutes of a phase, counted over all its processes."""

import time
from contextlib import suppress
from pathlib import Path

from niels_gpt.storage import write_json
from niels_gpt.untrusted import read_json
from niels_gpt.weights.paths import list_checkpoints
from train.artifacts.disk import tolerate_disk_errors

TIME = "time.json"
NOTED_EVERY = 10.0  # seconds: the most that a kill loses


class TimeLimit:
    """The time that a phase has taken in all its processes, and its limit in `minutes`, if any."""

    def __init__(self, folder: Path, minutes: float | None) -> None:
        """Continue counting from the time in `folder`, if a checkpoint is there."""
        self.path, self.minutes = folder / TIME, minutes
        self._before = 0.0
        with suppress(OSError, ValueError, TypeError, KeyError):  # a missing or damaged file
            if list_checkpoints(folder):
                self._before = max(0.0, float(read_json(self.path)["seconds"]))
        self._noted = self._before
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds used so far."""
        return self._before + time.monotonic() - self._started

    def is_reached(self) -> bool:
        """Return whether the limit is reached; save the time now and then."""
        if self.seconds() - self._noted >= NOTED_EVERY:
            self.save()
        return self.minutes is not None and self.seconds() >= self.minutes * 60

    def save(self) -> None:
        """Save the time for the next process."""
        self._noted = self.seconds()
        with tolerate_disk_errors(self.path):
            write_json(self.path, {"seconds": round(self._noted, 3)})
