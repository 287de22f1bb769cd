"""Writes to a disk that may be full, read-only or gone; errors name the file and the way out."""

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
MAKE_ROOM = "make room; what was saved before is as it was, and the same command goes on from it"
CHECK = "check the path, its permissions and the disk"
_told: set[Path] = set()  # files that have been warned of
log = logging.getLogger("niels_gpt")


class FaithfulFile(io.BufferedWriter):
    """A file for torch.save, which raises a RuntimeError without an errno for any OSError: the first is kept."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write, and keep what goes wrong."""
        try:
            return super().write(content)
        except OSError as error:
            self.error = self.error or error
            raise


@contextmanager
def writing(path: Path, need: int) -> Iterator[FaithfulFile]:
    """Write a file of about `need` bytes.

    Raises:
        DiskError: there is no room for it, or it cannot be written.
    """
    with explained_disk(path, need):
        require_room(path.parent, need)
        with FaithfulFile(io.FileIO(path, "wb")) as file:
            try:
                yield file
            except Exception as error:
                raise (file.error or error) from None


@contextmanager
def explained_disk(path: Path, need: int = 0) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into a message with the way out."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, need) from error


@contextmanager
def tolerated(path: Path) -> Iterator[None]:
    """Say once that `path` cannot be written, and go on: it is not worth a run."""
    try:
        yield
    except OSError as error:
        if path not in _told:
            _told.add(path)
            log.warning("warning: %s cannot be written (%s); training goes on", path, disk_error(error, path))


def require_room(folder: Path, need: int) -> None:
    """Refuse to begin a write that the disk has no room for, with the bytes that are needed and free."""
    if (have := _room(folder)) < need:
        raise _full(folder, need, have)


def require_writable(folder: Path, need: int) -> None:
    """Try a folder by a real write, before any work is done that it is to keep.

    Raises:
        DiskError: it cannot be written to, or has no room for `need` bytes.
    """
    trial = folder / ".trial.part"
    with explained_disk(trial):
        try:
            trial.write_bytes(b"x")
        finally:
            trial.unlink(missing_ok=True)
    require_room(folder, need)


def disk_error(error: OSError, path: Path | None = None, need: int = 0) -> DiskError:
    """Return the DiskError for an OSError; `path` is the file, where the error does not name it."""
    path = path or (Path(os.fsdecode(error.filename)) if error.filename else None)
    folder = next((folder for folder in path.parents if folder.is_dir()), None) if path else None
    if path and folder and error.errno in FULL:
        half = path.stat().st_size if path.suffix == ".part" and path.exists() else 0  # which will be removed
        return _full(folder, need, _room(folder, half), f" for {path.relative_to(folder)}")
    if error.errno in FULL:
        return DiskError(f"disk full: {error.strerror}", MAKE_ROOM)
    if path and path.parent != folder and isinstance(error, FileNotFoundError):
        return DiskError(f"{path.parent}: there is no such folder (any more)", "it must stay while it is in use")
    said = error.strerror or str(error)
    return DiskError(f"{path}: {said}" if path else said, CHECK)


def _room(folder: Path, removed: int = 0) -> int:
    """Return the bytes that a new file may take, once some are `removed`, within the limit of the process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = shutil.disk_usage(folder).free + removed
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def _full(folder: Path, need: int, have: int, name: str = "") -> DiskError:
    needed = f"need {need / 1e6:.1f} MB, " if need else ""
    return DiskError(f"disk full: {needed}have {have / 1e6:.1f} MB at {folder}{name}", MAKE_ROOM)
