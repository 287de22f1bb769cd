"""Write files whole or not at all, flush them to disk, and name the file in an error."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from stat import S_ISREG
from typing import Any

from niels_gpt.errors import ConfigError


def make_part_path(target: Path) -> Path:
    """Return the temporary path at which `target` is written; a killed process leaves it there."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def replace_atomically(target: Path, *, resume: bool = False) -> Iterator[Path]:
    """Yield a temporary path, renamed to `target` at the end; a failure leaves nothing.

    With `resume` it is a folder, which a signal, a kill or a full disk leaves to the next process.
    """
    part = make_part_path(target)
    if not resume or not part.is_dir() or part.is_symlink():
        _remove(part)  # it may be a link to something else: never write through that
    if resume:
        part.mkdir(exist_ok=True)
    try:
        yield part
        part.replace(target)
    except BaseException as error:
        may_go_on = isinstance(error, OSError) or not isinstance(error, Exception)
        if not (resume and may_go_on):
            _remove(part)
        raise


@contextmanager
def make_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `folder` at the end; a failure leaves nothing.

    ConfigError if `folder` exists.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} already exists", "choose a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(folder) as part:
        part.mkdir()
        yield part


def write_text(path: Path, text: str) -> None:
    """Replace a file's content: readers see the old or the new text, even after a power cut."""
    with add_file_name(path), replace_atomically(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        flush_to_disk(file.fileno())


@contextmanager
def add_file_name(path: Path) -> Iterator[None]:
    """Add the file name to an OSError of write or fsync, which lacks it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def flush_to_disk(descriptor: int) -> None:
    """Flush an open file to the disk itself; Apple's fsync alone does not wait for that."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content by JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def measure_size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; one with several names counts once."""
    sizes = {}
    for one in chain([path], path.rglob("*")):
        with suppress(FileNotFoundError):  # a run may replace its files meanwhile
            if S_ISREG((stat := one.lstat()).st_mode):
                sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def find_unused_path(name: str) -> Path:
    """Return the first of compare, compare-2, compare-3, ... that does not exist, for compare."""
    path = Path(name)
    numbered = (path.with_stem(f"{path.stem}-{n}") for n in count(2))
    return next(one for one in chain([path], numbered) if not one.exists())
