"""Limit what may take forever, and measure the CPU time of a command."""

import contextlib
import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

from conftest import cli


@contextlib.contextmanager
def never_forever() -> Iterator[None]:
    """End this process after minutes, as when a FIFO is waited for."""
    faulthandler.dump_traceback_later(180, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_timed(*words: str, cwd: Path) -> tuple[CompletedProcess[str], float]:
    """Run training in a fresh process; return its seconds of CPU, too."""
    before = os.times()
    done = cli(*words, cwd=cwd)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return done, seconds
