"""Console and file logging that survive a closed terminal, a broken pipe or a full disk."""

import io
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from niels_gpt.printable import harmless

log = logging.getLogger("niels_gpt")


class LastingStream:
    """A stream that outlives its reader: once nobody can be written to, what is said goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, to a reader or to nobody."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._let_go()
        return len(text)

    def flush(self) -> None:
        """Hand everything to the reader, if there is one."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._let_go()

    def _let_go(self) -> None:
        """Let the descriptor mean nowhere, so that what is still buffered has a place to go."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self._stream, name)


def outlive_readers(names: Sequence[str]) -> None:
    """Make `stdout` or `stderr` last as long as the process: a run goes on when its terminal has gone.

    Where the process was started without them, /dev/null takes their numbers, so that no other file gets them.
    """
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    for name in names:
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # a sample may hold what the terminal's encoding lacks
                stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, LastingStream(stream))


class ConsoleHandler(logging.Handler):
    """Prints messages as they are, above a progress bar where there is one; tracebacks are for the file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        from rich import get_console

        if record.exc_info:
            return
        with suppress(SystemExit, OSError):  # a closed pipe; training goes on without a reader
            get_console().print(harmless(self.format(record)), soft_wrap=True, markup=False, highlight=False)


class LogFile(logging.FileHandler):
    """A log file; when its disk is full or it has gone, that is said once, and what is logged is lost."""

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; the file is opened for the first one."""
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Warn once on the console."""
        if not self._told:
            self._told = True
            error = sys.exc_info()[1]
            log.warning("warning: %s cannot be written (%s); lines of it are lost", self.baseFilename, error)
