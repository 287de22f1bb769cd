"""Show how much of a source has been read."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

STEP = 1 << 20  # bytes from one update to the next
SAY_EVERY = 60.0  # seconds, where there is no terminal
log = logging.getLogger("niels_gpt")


@contextmanager
def show_progress(task: str, size: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told of bytes as they are read; on a terminal, show MB, MB/s and the time left.

    Elsewhere, log the MB once a minute.
    """
    console = get_console()
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        number, untold, said = progress.add_task(task, total=size), 0, time.monotonic()

        def advance(read: int) -> None:
            nonlocal untold, said
            untold += read
            if untold >= STEP:
                progress.advance(number, untold)
                untold = 0
                if not console.is_terminal and time.monotonic() - said > SAY_EVERY:
                    whole, said = f" of {size / 1e6:.1f}" if size else "", time.monotonic()
                    log.info("data: %s: %.1f%s MB", task, progress.tasks[number].completed / 1e6, whole)

        yield advance
