"""Console and file logging that survive a closed terminal, a broken pipe or a full disk."""

import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import get_console

from niels_gpt.printable import escape_text
from train.artifacts.disk import tolerate_disk_errors

FILE_ONLY = "file_only"  # in a record's `extra`: keep it off the console


class UnbreakableFile(io.FileIO):
    """A file that goes to /dev/null once it can no longer be written to."""

    def write(self, content: Any) -> int:
        """Write bytes, or drop them."""
        try:
            return super().write(content) or len(content)  # None: a terminal that would block
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(content)


def wrap_streams(unbreakable: Sequence[str]) -> None:
    """Escape what the encodings of stdin, stdout and stderr lack; the `unbreakable` ones outlive their readers.

    Descriptors 0 to 2 that are closed at the start become /dev/null, so that no other file gets their numbers.
    """
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass
    encoding = getattr(sys.stdin, "encoding", "utf-8")  # None if it was closed
    # It stays open as long as the process does.
    sys.stdin = open(0, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        kind = UnbreakableFile if name in unbreakable else io.FileIO
        file = io.BufferedWriter(kind(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=True))


class ConsoleHandler(logging.Handler):
    """Print messages above a progress bar, with control characters escaped; tracebacks go to the file only."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message, on a terminal wrapped at words unless it has a command, which people paste."""
        if record.exc_info or getattr(record, FILE_ONLY, False):
            return
        console, text = get_console(), escape_text(self.format(record))
        whole = not console.is_terminal or any(program in text for program in ("niels_gpt ", "python scripts/"))
        console.print(text, soft_wrap=whole, markup=False, highlight=False)


class WarnOnce(logging.Filter):
    """Drop a warning that this process has already given, unless its record says that it `repeats`."""

    def __init__(self) -> None:
        super().__init__()
        self._given: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is new, or not a warning."""
        if record.levelno != logging.WARNING or hasattr(record, "repeats"):
            return True
        before = len(self._given)
        self._given.add(record.getMessage())
        return len(self._given) > before


class LogFile(logging.FileHandler):
    """A log file that warns once on the console when it cannot be written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; the first one opens the file."""
        with tolerate_disk_errors(Path(self.baseFilename)):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error again, for `emit`."""
        raise
