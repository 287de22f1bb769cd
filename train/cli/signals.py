"""The first SIGINT or SIGTERM stops after the current step; the second ends the process."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PREEMPTION = (signal.SIGUSR1, signal.SIGUSR2)  # sent by a cluster before it takes the machine away

_early: list[int] = []  # signals that arrived before stop_on_signals


class Terminated(BaseException):
    """Raised with the number of SIGTERM, or of SIGHUP from a closed terminal, when there is nothing to save."""


def raise_on_signal(signum: int, _: FrameType | None) -> NoReturn:
    """Record the signal, then raise; the record survives if a destructor swallows the exception.

    A second signal kills the process.
    """
    _early.append(signum)
    for ending in ENDING:
        if signal.getsignal(ending) is raise_on_signal:
            signal.signal(ending, signal.SIG_DFL)
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated(signum)


@dataclass
class StopRequest:
    """The signal that asked the run to stop, if any."""

    signum: int | None = None

    def __call__(self) -> bool:
        """Return whether a signal arrived."""
        return self.signum is not None


@contextmanager
def stop_on_signals(again: Callable[[], None] | None = None) -> Iterator[StopRequest]:
    """Handle the signals while a phase trains, and restore their handlers afterwards.

    A second signal calls `again`, or ends the process without it. Clusters send several at once, so a
    preemption outweighs the others. SIGHUP stays ignored if it is, as under nohup.
    """
    stop = StopRequest()

    def request_stop(signum: int, _: FrameType | None) -> None:
        if stop.signum is None or signum in PREEMPTION:
            stop.signum = signum
        elif again:
            again()
        elif stop.signum not in PREEMPTION:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    heard = [signum for signum in (*ENDING, *PREEMPTION) if signal.getsignal(signum) is not None]  # None: C's
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        heard.remove(signal.SIGHUP)
    before = {signum: signal.signal(signum, request_stop) for signum in heard}
    try:
        if _early:
            raise_on_signal(_early[0], None)
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
