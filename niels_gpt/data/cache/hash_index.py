"""Cache file hashes by size and modification time, so that large files are read once."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from niels_gpt.storage import write_text

INDEX_FILE = "hashes.json"
CHUNK = 1 << 20  # bytes read at a time
SETTLED = 2e9  # nanoseconds without a change; a later change gets another modification time


def hash_file(path: Path, check: Callable[[bytes], None] | None = None) -> str:
    """Return the sha256 (hex) of a file's content; `check` is given every part of it, too."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            sha256.update(part)
            if check:
                check(part)
    return sha256.hexdigest()


class HashIndex:
    """The sha256 (hex) of files, kept in a folder. A changed file is read again; with `verify`, each one once."""

    def __init__(self, folder: Path, verify: bool = False) -> None:
        """Read the index of earlier processes; a damaged one counts as empty."""
        self.path = folder / INDEX_FILE
        self._entries: dict[str, tuple[int, int, str]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            content = json.loads(self.path.read_text(encoding="utf-8"))
            for path, (size, time_ns, hash) in content.items():
                self._entries[path] = int(size), int(time_ns), str(hash)
        self._unverified = {*self._entries} if verify else set[str]()
        self._changed = False

    def sha256(self, path: Path, *, final: bool = False, check: Callable[[bytes], None] | None = None) -> str:
        """Return the hash of a file; `final` if nobody writes to it any more. `check` is for `hash_file`."""
        stat, now, name = path.stat(), time.time_ns(), os.path.abspath(path)
        *recorded, hash = self._entries.get(name, (-1, -1, ""))
        if recorded == [stat.st_size, stat.st_mtime_ns] and name not in self._unverified:
            return hash
        hash = hash_file(path, check)
        self._unverified.discard(name)
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
