"""Run a module in a subprocess that ends with its parent, so that its crashes stay its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PARENT_PIPE_ENV = "NIELS_PARENT_PIPE"  # names the pipe's reading end in a child's environment
GRACE = 60.0  # seconds to finish the step and save it


def run_module(
    module: str, stdin: str, *, threads: int, variables: Mapping[str, str] = {}, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` with text on its stdin, on so many threads; it ends with this process.

    subprocess.TimeoutExpired if it took more than `timeout` seconds.
    """
    with parent_pipe() as (reading, pipe):
        return subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=stdin,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)} | dict(variables) | pipe,
            pass_fds=(reading,),
            timeout=timeout,
        )


@contextmanager
def parent_pipe() -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the reading end of a pipe, for `pass_fds`, and the variables that tell a child of it.

    The kernel closes the writing end when this process ends, even by SIGKILL, which ends the child.
    """
    reading, writing = os.pipe()
    try:
        yield reading, {PARENT_PIPE_ENV: str(reading)}
    finally:
        os.close(reading)
        os.close(writing)


def end_with_parent() -> None:
    """Send this process SIGTERM when its parent exits; force an exit GRACE seconds later."""
    if number := os.environ.pop(PARENT_PIPE_ENV, ""):
        os.set_inheritable(int(number), False)
        threading.Thread(target=_watch_parent, args=(int(number),), daemon=True, name="parent watch").start()


def _watch_parent(reading: int) -> None:
    os.read(reading, 1)  # returns when the writing end is closed
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
