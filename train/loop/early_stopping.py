"""Stop a phase whose validation loss no longer improves."""

from pathlib import Path

from train.artifacts.checkpointing import TrainState
from train.artifacts.disk import tolerate_disk_errors
from train.artifacts.metrics import METRICS, read_metrics


def is_out_of_patience(state: TrainState, patience: int | None, out: Path) -> bool:
    """Return whether this step was evaluated, as the last of `patience` evaluations or more since the best one."""
    return patience is not None and state.evaluated and count_evaluations_since_best(state, out) >= patience


def count_evaluations_since_best(state: TrainState, out: Path) -> int:
    """Return the number of evaluations in the metrics of a phase after the step in best.pt.

    A process that resumes finds both as they were, so that it stops at the same step.
    """
    with tolerate_disk_errors(out / METRICS):
        steps = {event["step"] for event in read_metrics(out / METRICS) if event["event"] == "val"}
        return sum(step > state.best_step for step in steps)
    return 0
