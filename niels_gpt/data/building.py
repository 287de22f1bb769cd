"""Builds a shared file or folder once: one process builds, the others wait."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LEFTOVERS = (".documents-*.part", ".dialogues-*.part", ".tokenizer-*.json.part")  # others may write there too
log = logging.getLogger("niels_gpt")


@contextmanager
def building(target: Path) -> Iterator[bool]:
    """Hold the lock of `target` and tell whether it is still to be built; wait while another process builds it.

    A target that exists under its name is complete. It needs no lock, so a finished cache may be read-only.
    """
    if target.exists():
        yield False
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(target)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        log.info("data: waiting for another process that builds %s", target.name)
        held = lock.acquire()
    with held:
        if missing := not target.exists():
            _sweep(target)
        yield missing


def _lock_of(target: Path) -> FileLock:
    return FileLock(target.with_name(f".{target.name}.lock"))


def _sweep(target: Path) -> None:
    """Remove what killed builds have left: of `target`, whose lock we hold, and of others that nobody builds."""
    for part in [part for pattern in LEFTOVERS for part in target.parent.glob(pattern)]:
        other = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
        with suppress(Timeout), nullcontext() if other == target else _lock_of(other).acquire(blocking=False):
            log.info("data: removed what a killed process left half built: %s", part.name)
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)
