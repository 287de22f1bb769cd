"""Write to a disk that may be full, read-only or gone; errors name the file and the way out."""

import errno
import io
import logging
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from niels_gpt.errors import DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "free some space, then run the same command again; saved files are intact"
CHECK = "check the path, its permissions and the disk"
_warned: set[Path] = set()
log = logging.getLogger("niels_gpt")


class ErrorKeepingFile(io.BufferedWriter):
    """A file that keeps its first OSError: torch.save turns it into a RuntimeError without an errno."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write, and keep the first error."""
        try:
            return super().write(content)
        except OSError as error:
            self.error = self.error or error
            raise


@contextmanager
def open_to_write(path: Path, need: int) -> Iterator[ErrorKeepingFile]:
    """Open a file to write about `need` bytes. DiskError if there is no room for it, or it cannot be written."""
    with explain_disk_errors(path, need):
        require_room(path.parent, need)
        with ErrorKeepingFile(path.open("wb", buffering=0)) as file:
            try:
                yield file
            except Exception as error:
                raise (file.error or error) from None


@contextmanager
def explain_disk_errors(path: Path, need: int = 0) -> Iterator[None]:
    """Turn an OSError while `path` is written into a DiskError with the way out."""
    try:
        yield
    except OSError as error:
        raise make_disk_error(error, path, need) from error


@contextmanager
def tolerate_disk_errors(path: Path) -> Iterator[None]:
    """Warn once that `path` cannot be written, and go on."""
    try:
        yield
    except OSError as error:
        if path not in _warned:
            _warned.add(path)
            log.warning("warning: %s cannot be written (%s); continuing", path, make_disk_error(error, path))


def require_room(folder: Path, need: int) -> None:
    """Refuse to begin a write that the disk has no room for."""
    if (have := _measure_room(folder)) < need:
        raise _make_full_error(folder, need, have)


def require_writable(folder: Path, need: int) -> None:
    """Write a small file to a folder, so that a run fails before it has done any work.

    DiskError if the folder cannot be written to, or has no room for `need` bytes.
    """
    trial = folder / ".trial.part"
    with explain_disk_errors(trial):
        try:
            trial.write_bytes(b"x")
        finally:
            trial.unlink(missing_ok=True)
    require_room(folder, need)


def make_disk_error(error: OSError, path: Path | None = None, need: int = 0) -> DiskError:
    """Return the DiskError for an OSError; `path` is the file, where the error does not name it."""
    path = path or (Path(os.fsdecode(error.filename)) if error.filename else None)
    folder = next((folder for folder in path.parents if os.path.isdir(folder)), None) if path else None
    if path and folder and error.errno in FULL:
        half = path.stat().st_size if path.suffix == ".part" and path.exists() else 0  # which will be removed
        return _make_full_error(folder, need, _measure_room(folder, half), f" for {path.relative_to(folder)}")
    if path and path.parent != folder and isinstance(error, FileNotFoundError):
        return DiskError(f"{path.parent}: the folder does not exist", "do not remove it while a run uses it")
    said = error.strerror or str(error)
    return DiskError(f"{path}: {said}" if path else said, MAKE_ROOM if error.errno in FULL else CHECK)


def _measure_room(folder: Path, removed: int = 0) -> int:
    """Return the bytes that a new file may take once some are `removed`, within the process's limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = shutil.disk_usage(folder).free + removed
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def _make_full_error(folder: Path, need: int, have: int, name: str = "") -> DiskError:
    room = f"need {need / 1e6:.1f} MB, have {have / 1e6:.1f} MB" if need else f"{have / 1e6:.1f} MB are free now"
    return DiskError(f"disk full: {room} at {folder}{name}", MAKE_ROOM)
