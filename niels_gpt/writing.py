"""How what a run keeps is written: whole or not at all, with errors that name the file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niels_gpt.durable import to_platter


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
