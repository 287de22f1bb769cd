"""F16: of many starts on one folder one gets it, and the others name it and exit with 7."""

import os
import re
import signal
import sys
import threading
from functools import partial
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest
from support.processes import KILLED, LONGEST, Child, announce, context, start, wait_until

from faults.scale import scaled
from niels_gpt.errors import RunFolderInUse
from train.artifacts.run_folder import is_locked, lock_folder, unlock_folder

pytestmark = pytest.mark.slow
ENDLESS = [
    "experiment=smoke_pretrain", "data.size=200", "model.V=300", "name=run",
    "train.total_steps=100000000", "train.log_every=1000000", "train.eval_every=1000000",
]  # fmt: skip
LOCKS = 50


def claim(folder: Path, barrier: Barrier, done: Event) -> None:
    """Take the folder at the same moment as all others; leave a file that says why not."""
    barrier.wait()
    try:
        lock_folder(folder)
    except RunFolderInUse as error:
        (folder / f"refused-{os.getpid()}").write_text(str(error))
        sys.exit(error.exit_code)
    done.wait(LONGEST)


@pytest.mark.parametrize("count", range(scaled(1, 10)))
def test_of_fifty_processes_that_take_a_folder_at_once_one_has_it_and_all_others_name_it(
    tmp_path: Path, count: int
) -> None:
    (tmp_path / "run.lock").write_text("process 4194303 on here\n")  # which was killed
    barrier, done = context().Barrier(LOCKS), context().Event()
    processes = [context().Process(target=claim, args=(tmp_path, barrier, done)) for _ in range(LOCKS)]
    for process in processes:
        process.start()
    wait_until(lambda: len(list(tmp_path.glob("refused-*"))) == LOCKS - 1)
    done.set()
    for process in processes:
        process.join(LONGEST)
    (owner,) = (process.pid for process in processes if not process.exitcode)
    refused = [path.read_text() for path in tmp_path.glob("refused-*")]
    assert all(text.startswith(f"{tmp_path} is in use by process {owner} on ") for text in refused)
    assert sorted(process.exitcode or 0 for process in processes) == [0] + [7] * (LOCKS - 1)


def test_of_many_runs_on_one_folder_one_continues_and_after_its_kill_a_restart_does(tmp_path: Path) -> None:
    shared = [*ENDLESS, f"dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache"]
    folders = [tmp_path / str(number) for number in range(scaled(3, 50))]

    def begin(folder: Path) -> Child:
        folder.mkdir(exist_ok=True)
        return start(*shared, cwd=folder, before=partial(announce, "train.loop.steps.optimizer_step"))

    runs = [begin(folder) for folder in folders]
    wait_until(lambda: sum(run.process.is_alive() for run in runs) == 1)
    (owner,) = (run for run in runs if run.process.is_alive())
    for run in runs:
        if run is not owner:
            done = run.end()
            assert done.returncode == 7, done.stderr
            said = rf"^error: .*run is in use by process {owner.pid} on \S+\nhint: wait"
            assert re.search(said, done.stderr, re.M), done.stderr
    assert owner.wait_for("reached")
    owner.send(signal.SIGKILL)
    assert owner.end().returncode == KILLED
    (owner.cwd / "reached").unlink()
    again = begin(owner.cwd)
    assert again.wait_for("reached"), again.end()
    again.send(signal.SIGTERM)
    assert again.end().returncode == 143
    assert not is_locked(tmp_path / "run")


def test_asking_whether_a_folder_is_locked_keeps_nobody_from_locking_it(tmp_path: Path) -> None:
    """A report of a sweep asks while a job starts."""
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            is_locked(tmp_path)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(scaled(300, 5000)):
            lock_folder(tmp_path)
            unlock_folder(str(tmp_path))
    finally:
        done.set()
        asking.join()
