"""The lifeline of a child process: a pipe that closes when its parent ends, however the parent ends."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LIFELINE = "NIELS_LIFELINE"  # names the pipe's reading end in a child's environment
GRACE = 60.0  # seconds to finish the step and save it


@contextmanager
def lifeline() -> Iterator[tuple[int, dict[str, str]]]:
    """Hold a lifeline; children get its reading end by `pass_fds`, and the variables in their environment.

    The kernel closes the writing end with this process, even where a signal gives no time to act.
    """
    reading, writing = os.pipe()
    try:
        yield reading, {LIFELINE: str(reading)}
    finally:
        os.close(reading)
        os.close(writing)


def end_with_parent() -> None:
    """End this process when the parent that gave it a lifeline ends: as by SIGTERM, after `GRACE` at once."""
    if number := os.environ.pop(LIFELINE, ""):
        os.set_inheritable(int(number), False)
        threading.Thread(target=_watch, args=(int(number),), daemon=True, name="lifeline").start()


def _watch(reading: int) -> None:
    os.read(reading, 1)  # returns at the end of the file: nobody writes
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
