"""Jobs that go wrong at their second step, in the way that their train.seed names."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from train.loop.steps import optimizer_step


def raises(_: Any) -> None:
    raise RuntimeError("a fault of the test")


def exits(_: Any) -> None:
    sys.exit(23)


def killed(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def not_finite(state: Any) -> None:
    next(state.model.parameters()).data.fill_(float("nan"))


def leaves_quietly(_: Any) -> None:
    os._exit(0)


FAULTS: dict[str, Callable[[Any], None]] = {
    "train.seed=1001": raises,
    "train.seed=1002": exits,
    "train.seed=1003": killed,
    "train.seed=1004": not_finite,
    "train.seed=1005": leaves_quietly,
}


def go_wrong() -> None:
    """Put the fault that the command line names, if it names one, before a run's second step."""
    fault = next((FAULTS[word] for word in sys.argv if word in FAULTS), None)

    def faulty(state: Any, *arguments: Any) -> Any:
        if fault and state.step == 1:
            fault(state)
        return optimizer_step(state, *arguments)

    mock.patch("train.loop.steps.optimizer_step", faulty).start()
