"""Put on PYTHONPATH, it makes a run go wrong at its second step, in the way that its train.seed names."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


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


class Faulty(MetaPathFinder, Loader):
    """Loads the loop as it is, and puts a fault before its second step."""

    def __init__(self, fault: Callable[[Any], None]) -> None:
        self.fault = fault

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != "train.train_loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        self.real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.real.exec_module(module)
        step = module.optimizer_step

        def faulty(state: Any, *arguments: Any) -> Any:
            if state.step == 1:
                self.fault(state)
            return step(state, *arguments)

        vars(module)["optimizer_step"] = faulty


for word in sys.orig_argv:
    if word in FAULTS:
        sys.meta_path.insert(0, Faulty(FAULTS[word]))
