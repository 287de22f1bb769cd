"""Jobs that go wrong at their second step, as their train.seed says."""

import os
import signal
import sys
from typing import Any
from unittest import mock

from train.loop.steps import optimizer_step


def go_wrong() -> None:
    """Put the fault that the command line names, if it names one, before a run's second step."""

    def faulty(state: Any, *arguments: Any) -> Any:
        if state.step == 1:
            if "train.seed=1001" in sys.argv:
                raise RuntimeError("a fault of the test")
            if "train.seed=1002" in sys.argv:
                os.kill(os.getpid(), signal.SIGKILL)
            if "train.seed=1003" in sys.argv:
                next(state.model.parameters()).data.fill_(float("nan"))
            if "train.seed=1004" in sys.argv:
                os._exit(0)
        return optimizer_step(state, *arguments)

    mock.patch("train.loop.steps.optimizer_step", faulty).start()
