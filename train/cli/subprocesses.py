"""Run a module in a subprocess that ends with its parent, so that its crashes stay its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIFELINE = "NIELS_PARENT_PIPE"  # names the pipe's reading end in a child's environment
GRACE = 60.0  # seconds to finish the step and save it


def run_module(
    module: str,
    question: str,
    *,
    threads: int,
    variables: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` with a question on its stdin, on so many threads; it ends with this process.

    Raises:
        subprocess.TimeoutExpired: it took more than `timeout` seconds.
    """
    with parent_pipe() as (reading, end):
        return subprocess.run(
            [sys.executable, "-m", module],
            input=question,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)} | dict(variables or {}) | end,
            pass_fds=(reading,),
            timeout=timeout,
        )


@contextmanager
def parent_pipe() -> Iterator[tuple[int, dict[str, str]]]:
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
