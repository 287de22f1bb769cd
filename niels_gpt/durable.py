"""What makes written bytes survive a power cut."""

import fcntl
import os
import sys
from pathlib import Path


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
