"""Log to MLflow: to mlflow.db in the working folder, where `mlflow ui` looks, or to MLFLOW_TRACKING_URI."""

import os
import re
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from train.loop.loggers.backend import PROJECT, LoggedPhase, Point

ID = "niels_gpt.id"  # the tag by which a run is found again
MOST = 100  # entries in a call


class Logger:
    """A metric of the same name, step, time and value is one row of the database, however often it is logged."""

    repeated = "ignored"

    def __init__(self, phase: LoggedPhase) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        with FileLock(Path(gettempdir(), f"{PROJECT}.mlflow.{os.getuid()}.lock")):  # jobs would both make tables
            self._client = MlflowClient(uri)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
        runs = self._client.search_runs([experiment], f"tags.`{ID}` = '{phase.id}'")
        tags = {ID: phase.id, "group": phase.group, "mlflow.source.git.commit": phase.config["commit"]}
        tags = {key: tag for key, tag in tags.items() if tag}
        run = runs[0] if runs else self._client.create_run(experiment, run_name=phase.name, tags=tags)
        self._id, self._phase = run.info.run_id, phase.phase
        self._client.update_run(self._id, "RUNNING")
        new = phase.config.keys() - run.data.params.keys()  # a parameter cannot change
        params = [Param(key, str(phase.config[key])) for key in sorted(new)]
        for at in range(0, len(params), MOST):
            self._client.log_batch(self._id, params=params[at : at + MOST])

    def log(self, points: list[Point]) -> None:
        """Log a metric for each number."""
        metrics = [
            Metric(re.sub(r"[^\w.\- :/]", "_", name), number, int(1000 * point.time), point.step)
            for point in points
            for name, number in point.numbers.items()
        ]
        for at in range(0, len(metrics), MOST):
            self._client.log_batch(self._id, metrics=metrics[at : at + MOST])

    def close(self, curves: Path | None, *, complete: bool) -> None:
        """Add the picture as an artifact, and end the run."""
        if curves:
            self._client.log_artifact(self._id, str(curves), self._phase)
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")
