"""Write files whole or not at all, flush them to disk, and name the file in an error."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any


def part_of(target: Path) -> Path:
    """Return where a file or folder is made before it has its name; a killed process leaves it there."""
    return target.with_name(f".{target.name}.part")


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """Give the place in which to make `target`, which has its name at the end; what fails leaves nothing."""
    part = part_of(target)
    _remove(part)  # a killed process may have left a link to something else: never write into that
    try:
        yield part
        part.replace(target)
    finally:
        _remove(part)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content: a reader sees the old or the new, as does who comes after a power cut."""
    with naming(path), beside(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        to_platter(file.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError say which file it is about, as those of open do, but those of write and fsync do not."""
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


def to_platter(descriptor: int) -> None:
    """Return once an open file is on the disk itself; Apple's fsync alone does not wait for that."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Return once the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content by JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def numbered(name: str) -> Iterator[Path]:
    """Yield names to choose from: of doctor.json itself, doctor-2.json, doctor-3.json, ..."""
    path = Path(name)
    yield path
    yield from (path.with_stem(f"{path.stem}-{n}") for n in count(2))


def unused(name: str) -> Path:
    """Return the first of the numbered names that is not taken."""
    return next(path for path in numbered(name) if not path.exists())
