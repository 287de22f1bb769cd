"""Writing to a disk that may be full, read-only or gone: what cannot be written is named, with the way out."""

import errno
import logging
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from niels_gpt.errors import DiskError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAKE_ROOM = "make room; what was saved before is as it was, and the same command goes on from it"
CHECK = "check the path, its permissions and the disk"
_told: set[Path] = set()  # files that have been warned of
log = logging.getLogger("niels_gpt")


class FaithfulFile:
    """A file for torch.save, which makes a RuntimeError without an errno of any OSError: the first is kept."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        """Write, and keep what goes wrong."""
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        """Hand everything to the system."""
        self.file.flush()

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self.file.fileno()


@contextmanager
def writing(path: Path, need: int) -> Iterator[FaithfulFile]:
    """Write a file of about `need` bytes.

    Raises:
        DiskError: there is no room for it, or it cannot be written.
    """
    with explained_disk(path, need):
        require_room(path.parent, need)
        with path.open("wb") as opened:
            file = FaithfulFile(opened)
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
    """Refuse to begin what the disk has no room for.

    Raises:
        DiskError: how much is needed, and how much is there.
    """
    if (have := _room(folder)) < need:
        raise DiskError(_full(folder, need, have), MAKE_ROOM)


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
    """Return what an OSError means; `path` is what was written, where the error does not name it."""
    path = path or (Path(os.fsdecode(error.filename)) if error.filename else None)
    said = error.strerror or str(error)
    if error.errno in FULL:
        named = _full_for(path, need) if path else None
        return DiskError(named or f"disk full: {said}", MAKE_ROOM)
    if path and isinstance(error, FileNotFoundError) and not path.parent.exists():
        return DiskError(f"{path.parent}: there is no such folder (any more)", "it must stay while it is in use")
    return DiskError(f"{path}: {said}" if path else said, CHECK)


def _room(folder: Path, removed: int = 0) -> int:
    """Return the bytes that a new file may take, once some are `removed`: what is free, or the process's limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    free = shutil.disk_usage(folder).free + removed
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def _full_for(path: Path, need: int) -> str | None:
    """Say what is there where a file found no room; half written, it is removed again, perhaps with its folder."""
    if (folder := next((folder for folder in path.parents if folder.is_dir()), None)) is None:
        return None
    removed = path.stat().st_size if path.suffix == ".part" and path.exists() else 0
    return f"{_full(folder, need, _room(folder, removed))} for {path.relative_to(folder)}"


def _full(folder: Path, need: int, have: int) -> str:
    needed = f"need {need / 1e6:.1f} MB, " if need else ""
    return f"disk full: {needed}have {have / 1e6:.1f} MB at {folder}"
