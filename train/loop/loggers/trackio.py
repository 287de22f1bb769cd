"""Log to Trackio's database: in its own folder, or in TRACKIO_DIR."""

import os
from datetime import UTC, datetime
from pathlib import Path

from trackio.sqlite_storage import SQLiteStorage

from train.loop.loggers.backend import PROJECT, LoggedPhase, Point


class Logger:
    """Each row has an id, under which it is inserted once. Trackio's `init` would start threads and print."""

    repeated = "ignored"

    def __init__(self, phase: LoggedPhase) -> None:
        self._phase, self._project = phase, os.environ.get("TRACKIO_PROJECT", PROJECT)
        earlier = SQLiteStorage.get_run_config(self._project, phase.name, run_id=phase.id) or {}
        now = datetime.now(UTC).isoformat()
        self._config = {"_Created": now} | earlier | {"_Group": phase.group} | phase.config

    def log(self, points: list[Point]) -> None:
        """Insert a row for each point."""
        SQLiteStorage.bulk_log(
            self._project,
            self._phase.name,
            [point.numbers for point in points],
            steps=[point.step for point in points],
            timestamps=[datetime.fromtimestamp(point.time, UTC).isoformat() for point in points],
            config=self._config,
            log_ids=[f"{self._phase.id}/{self._phase.phase}/{point.event}/{point.step}" for point in points],
            run_id=self._phase.id,
        )

    def close(self, curves: Path | None, *, complete: bool) -> None:
        """Do nothing: all is written, and Trackio draws the curves itself."""
