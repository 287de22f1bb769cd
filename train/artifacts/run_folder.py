"""Lock the run folder for one process, and remove the stale files of killed ones."""

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from niels_gpt.errors import CheckpointError, RunFolderInUse
from train.artifacts.disk import explain_disk_errors
from train.artifacts.results import has_begun, require_unchanged
from train.config.schema import RunCfg

LOCK = "run.lock"
PATIENCE = 0.5  # seconds: is_locked takes the lock for a moment, and a new owner has yet to write its name
_held: dict[Path, FileLock] = {}  # the kernel drops a lock when its process ends, however it ends
log = logging.getLogger("niels_gpt")


def claim_run_folder(plan: list[RunCfg]) -> None:
    """Lock the run folder of a plan until this process ends.

    RunFolderInUse if another process holds it. CheckpointError if it holds a run that resume=never or the settings
    rule out.
    """
    if plan[0].resume == "never" and has_begun(plan):
        raise CheckpointError(
            f"resume=never, but {plan[0].dir} already holds a run",
            "choose another name=..., or resume=auto to continue this one",
        )
    require_unchanged(plan)
    lock_folder(Path(plan[0].dir))


def lock_folder(folder: Path) -> None:
    """Lock a folder until this process ends.

    RunFolderInUse if another process holds it. DiskError if it cannot be made or written to.
    """
    if folder.resolve() in _held:
        return
    path = folder / LOCK
    with explain_disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, PATIENCE, poll_interval=0.02, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
            way_out = "wait for it to end, or choose another name=..."
            raise RunFolderInUse(f"{folder} is in use by {owner}", way_out) from None
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    _held[folder.resolve()] = lock


def is_locked(folder: Path) -> bool:
    """Return whether a living process holds a folder's lock."""
    path = folder / LOCK
    if not path.is_file():  # opening a FIFO would wait
        return False
    with path.open("rb") as file:
        return not lock_descriptor(file.fileno(), blocking=False)


def unlock_folder(folder: str) -> None:
    """Unlock a run folder before the process ends."""
    if lock := _held.pop(Path(folder).resolve(), None):
        lock.release()


def remove_stale_files(plan: Sequence[RunCfg]) -> None:
    """Remove partly written files from a run folder that this process has locked."""
    found = list(Path(plan[0].dir).glob(".*.json.part"))  # only these: other programs may write to this folder
    found += [path for cfg in plan for path in cfg.out.glob(".*.part")]
    for path in found:
        path.unlink()
    if found:
        names = ", ".join(path.name for path in found)
        log.info("removed partial files of a killed process: %s", names)
