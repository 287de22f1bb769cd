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
    sys.stdin = open(0, encoding=encoding, errors="backslashreplace", closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        kind = UnbreakableFile if name in unbreakable else io.FileIO
        file = io.BufferedWriter(kind(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(file, encoding, "backslashreplace", line_buffering=True))


class ConsoleHandler(logging.Handler):
    """Print messages above a progress bar, with control characters escaped; tracebacks go to the file only.

    rich's own handler would wrap them to the width of the terminal.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        if not record.exc_info:
            text = escape_text(self.format(record))
            get_console().print(text, soft_wrap=True, markup=False, highlight=False)


class LogFile(logging.FileHandler):
    """A log file that warns once on the console when it cannot be written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message; the first one opens the file."""
        with tolerate_disk_errors(Path(self.baseFilename)):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise the error again, for `emit`."""
        raise
