"""Cache file hashes by size and modification time, so that large files are read once."""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from niels_gpt.storage import write_text

INDEX_FILE = "hashes.json"
SETTLED = 2e9  # nanoseconds without a change; a later change gets another modification time


def hash_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashIndex:
    """The sha256 (hex) of files, kept in a folder. A file that has changed is read again."""

    def __init__(self, folder: Path) -> None:
        """Read the index of earlier processes; a damaged one counts as empty."""
        self.path = folder / INDEX_FILE
        self._entries: dict[str, tuple[int, int, str]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            for path, (size, time_ns, hash) in content.items():
                self._entries[path] = int(size), int(time_ns), str(hash)
        self._changed = False

    def sha256(self, path: Path, *, final: bool = False) -> str:
        """Return the hash of a file; `final` if nobody writes to it any more."""
        stat, now, name = path.stat(), time.time_ns(), os.path.abspath(path)
        *recorded, hash = self._entries.get(name, (-1, -1, ""))
        if recorded == [stat.st_size, stat.st_mtime_ns]:
            return hash
        hash = hash_file(path)
        if final or now - stat.st_mtime_ns > SETTLED:
            self._entries[name] = stat.st_size, stat.st_mtime_ns, hash
            self._changed = True
        return hash

    def save(self) -> None:
        """Write the index for other processes; if the folder cannot be written to, do without."""
        if self._changed:
            existing = {path: entry for path, entry in self._entries.items() if os.path.exists(path)}
            with suppress(OSError):
                write_text(self.path, json.dumps(existing))
