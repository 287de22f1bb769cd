"""Show how much of a source has been read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import get_console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

STEP = 1 << 20  # bytes from one update to the next


@contextmanager
def show_progress(task: str, size: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told of bytes as they are read; on a terminal, show MB, MB/s and the time left."""
    console = get_console()
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        number, untold = progress.add_task(task, total=size), 0

        def advance(read: int) -> None:
            nonlocal untold
            untold += read
            if untold >= STEP:
                progress.advance(number, untold)
                untold = 0

        yield advance
