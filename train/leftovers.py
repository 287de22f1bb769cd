"""What a killed process has left half written: hidden files beside the ones that they were to become."""

import logging
from collections.abc import Iterable
from pathlib import Path

PATTERNS = (".*.part", ".*.tmp")  # as checkpoints, tokenizers and small files are written
log = logging.getLogger("niels_gpt")


def sweep_leftovers(folders: Iterable[Path]) -> None:
    """Remove them from folders that are this process's own: whoever wrote them has ended."""
    found = sorted(path for folder in folders for pattern in PATTERNS for path in folder.glob(pattern))
    for path in found:
        path.unlink()
    if found:
        names = ", ".join(path.name for path in found)
        log.info("removed what a killed process left half written: %s", names)
