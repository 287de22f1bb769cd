"""How something is built once for all: one process builds, others wait, what killed ones left is swept."""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

LEFTOVERS = (".documents-*.part", ".dialogues-*.part", ".tokenizer-*.json.part")  # others may write there too
log = logging.getLogger("niels_gpt")


@contextmanager
def building(target: Path) -> Iterator[bool]:
    """Hold the lock of `target` and tell whether it is still to be built: one process builds, others wait.

    The kernel drops the lock of a process that ends, however it ends. What is there under its name is whole and
    needs no lock, which a read-only cache could not give.
    """
    if target.exists():
        yield False
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock_of(target).open("a") as lock:
        if not _taken(lock):
            log.info("data: waiting for another process that builds %s", target.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if missing := not target.exists():
            _sweep(target)
        yield missing


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(target: Path) -> None:
    """Remove what killed builds have left: of `target`, whose lock we hold, and of others that nobody builds."""
    for part in [part for pattern in LEFTOVERS for part in target.parent.glob(pattern)]:
        if (other := _target_of(part)) == target:
            _remove(part)
        else:
            with _lock_of(other).open("a") as lock:
                if _taken(lock):
                    _remove(part)


def _target_of(part: Path) -> Path:
    """Return what something half built was to become."""
    return part.with_name(part.name.removeprefix(".").removesuffix(".part"))


def _remove(part: Path) -> None:
    log.info("data: removed what a killed process left half built: %s", part.name)
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
