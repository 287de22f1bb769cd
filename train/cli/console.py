"""Console and file logging that survive a closed terminal, a broken pipe or a full disk."""

import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TextIO

from niels_gpt.printable import escape_text

log = logging.getLogger("niels_gpt")


class UnbreakableStream:
    """A stream that goes to /dev/null once it can no longer be written to."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its buffer."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                descriptor = self._stream.fileno()
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # takes what is still buffered

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the stream."""
        return getattr(self._stream, name)


def outlive_readers(names: Sequence[str]) -> None:
    """Keep the process going when the reader of `stdout` or `stderr` goes away.

    Descriptors 0 to 2 that are closed at the start become /dev/null, so that no other file gets their numbers.
    """
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    for name in names:
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # a sample may hold what the terminal's encoding lacks
                stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, UnbreakableStream(stream))


class ConsoleHandler(logging.Handler):
    """Print messages above a progress bar, with control characters escaped; tracebacks go to the file only.

    rich's own handler would wrap them to the width of the terminal.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        from rich import get_console

        if not record.exc_info:
            with suppress(SystemExit, OSError):  # rich exits on a closed pipe
                get_console().print(
                    escape_text(self.format(record)), soft_wrap=True, markup=False, highlight=False
                )


class LogFile(logging.FileHandler):
    """A log file that warns once on the console when it cannot be written."""

    _warned = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; the first one opens the file."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn once on the console."""
        if not self._warned:
            self._warned = True
            error = sys.exc_info()[1]
            log.warning("warning: %s cannot be written (%s); some log lines are lost", self.baseFilename, error)
