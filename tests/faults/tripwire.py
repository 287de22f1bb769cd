"""A tripwire: it kills its own process at the n-th thing that is done to the files of a folder.

It is laid from outside, around the functions of the standard library; the program knows nothing of it.
"""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "open", "fsync")  # of the module os


class Tripwire:
    """Called in the process to be killed, it lays itself. Without `at`, it only notes what it saw."""

    def __init__(self, folder: Path, at: int | None = None, trace: Path | None = None) -> None:
        self.folder, self.at, self.trace = str(folder), at, trace
        self.count = 0

    def __call__(self) -> None:
        """Lay the wire around everything that changes files."""
        if self.trace:
            self.file = os.open(self.trace, os.O_WRONLY | os.O_CREAT)
        for name in CALLS:
            setattr(os, name, self._wired(name, getattr(os, name)))
        self._open: Callable[..., Any] = io.open
        vars(io)["open"] = self._opened

    def passed(self, what: str, path: Any) -> None:
        """Count a thing that is about to be done; die if it is the one."""
        path = str(path)
        if not path.startswith(self.folder) or path.endswith(".lock"):
            return
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1
        if self.trace:
            os.write(self.file, f"{what} {path.removeprefix(self.folder)}\n".encode())

    def _wired(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wired(path: Any, *rest: Any, **named: Any) -> Any:
            self.passed(name, os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path)
            return real(path, *rest, **named)

        return wired

    def _opened(self, path: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if mode[0] == "r":
            return self._open(path, mode, *rest, **named)
        self.passed("create", path)
        return _Slow(self._open(path, mode, *rest, **named), lambda: self.passed("write", path))


class _Slow:
    """A file that writes everything in two halves, which are on the disk before `between` is called."""

    def __init__(self, file: Any, between: Callable[[], None]) -> None:
        self.file, self.between = file, between

    def write(self, content: Any) -> int:
        half = len(content) // 2
        self.file.write(content[:half])
        self.file.flush()
        self.between()
        self.file.write(content[half:])
        return len(content)

    def __enter__(self) -> "_Slow":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
