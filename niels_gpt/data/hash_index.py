"""Remember the hashes of files by size and modification time, so that large ones are read once."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from niels_gpt.storage import write_text

INDEX = "hashes.json"
SETTLED = 2e9  # nanoseconds without a change, after which another one would have another modification time


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashIndex:
    """The sha256 (hex) of files, kept in a folder. A file that was changed is read again."""

    def __init__(self, folder: Path) -> None:
        """Read what earlier processes have left; a damaged index counts as empty."""
        self.path = folder / INDEX
        self._known: dict[str, tuple[int, int, str]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            for path, (size, time_ns, hash) in content.items():
                self._known[path] = int(size), int(time_ns), str(hash)
        self._changed = False

    def known(self, path: Path) -> str | None:
        """Return the hash of a file if it is as it was when it was hashed."""
        *then, hash = self._known.get(os.path.abspath(path), (-1, -1, ""))
        stat = path.stat()
        return hash if then == [stat.st_size, stat.st_mtime_ns] else None

    def sha256(self, path: Path, *, final: bool = False) -> str:
        """Return the hash of a file; `final` says that nobody writes to it any more."""
        if known := self.known(path):
            return known
        stat, now = path.stat(), time.time_ns()
        hash = file_sha256(path)
        if final or now - stat.st_mtime_ns > SETTLED:
            self._known[os.path.abspath(path)] = stat.st_size, stat.st_mtime_ns, hash
            self._changed = True
        return hash

    def save(self) -> None:
        """Keep what was learned for other processes; a folder that cannot be written to is not worth a run."""
        if self._changed:
            there = {path: entry for path, entry in self._known.items() if os.path.exists(path)}
            with suppress(OSError):
                write_text(self.path, json.dumps(there))
