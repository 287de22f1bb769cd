"""Turns the first Ctrl-C or SIGTERM into a wish to stop after the step; a second one ends the process."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """Whether, and by which signal, the run was asked to stop."""

    signum: int | None = None

    def __call__(self) -> bool:
        """Return whether a stop was asked for."""
        return self.signum is not None


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Listen for the signals while a phase learns; what listened before is put back."""
    stop = Stop()

    def ask(signum: int, _: FrameType | None) -> None:
        stop.signum = signum
        for again in SIGNALS:
            signal.signal(again, signal.SIG_DFL)

    before = {signum: signal.signal(signum, ask) for signum in SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
