"""F16: many starts on one folder: one has it, the others end with 7 and name it; a killed one is in no way."""

import os
import re
import signal
import socket
import sys
import time
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

from support.warm import context

from faults.forked import LONGEST, Forked, forked
from faults.scale import note, scaled
from niels_gpt.errors import RunFolderInUse
from train.artifacts.run_folder import is_locked, lock_folder, unlock_folder

RUN = ["experiment=smoke_pretrain", "data.size=200", "model.V=300", "data.cache_dir=cache", "name=run"]
ENDLESS = [*RUN, "train.total_steps=100000000", "train.log_every=1000000", "train.eval_every=1000000"]
LOCKS = 50
GONE = 2**22 - 1  # the highest number that Linux gives to a process


def claims(folder: Path, barrier: Barrier, done: Event) -> None:
    """Take the folder at the same moment as all others; leave a file that says how that went."""
    barrier.wait()
    try:
        lock_folder(folder)
    except RunFolderInUse as error:
        (folder / f"refused-{os.getpid()}").write_text(str(error))
        sys.exit(error.exit_code)
    (folder / f"has-{os.getpid()}").touch()
    done.wait(LONGEST)


def test_fifty_processes_that_take_a_folder_at_once_give_one_owner_whom_all_others_name(tmp_path: Path) -> None:
    rounds = scaled(1, 10)
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "run.lock").write_text(f"process {GONE} on {socket.gethostname()}\n")  # which was killed
        barrier, done = context().Barrier(LOCKS), context().Event()
        processes = [context().Process(target=claims, args=(folder, barrier, done)) for _ in range(LOCKS)]
        for process in processes:
            process.start()
        deadline = time.monotonic() + LONGEST
        while len(list(folder.glob("*-*"))) < LOCKS and time.monotonic() < deadline:
            time.sleep(0.02)
        owners = [path.name.removeprefix("has-") for path in folder.glob("has-*")]
        refused = [path.read_text() for path in folder.glob("refused-*")]
        done.set()
        for process in processes:
            process.join(LONGEST)
        assert len(owners) == 1 and len(refused) == LOCKS - 1
        assert all(text.startswith(f"{folder} is in use by process {owners[0]} on ") for text in refused)
        assert sorted(process.exitcode or 0 for process in processes) == [0] + [7] * (LOCKS - 1)
    note("one lock, 50 at once", "1 owner, 49 refusals that name it", f"{rounds} rounds of 50: as asked")


def test_of_many_runs_on_one_folder_one_goes_on_and_after_its_kill_a_restart_does(tmp_path: Path) -> None:
    starts = scaled(4, 50)
    folders = [tmp_path / str(number) for number in range(starts)]
    shared = [*ENDLESS, f"dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache"]
    for folder in folders:
        folder.mkdir()
    runs = [Forked(*shared, cwd=folder) for folder in folders]
    ends: list[tuple[Forked, Any]] = []
    while len(ends) < starts - 1:
        ends += [(one, one.end()) for one in runs if not one.process.is_alive() and one not in dict(ends)]
        time.sleep(0.02)
    (owner,) = [one for one in runs if one.process.is_alive()]
    for _, (code, said) in ends:
        assert code == 7, said
        assert re.search(rf"^error: .*run is in use by process {owner.pid} on \S+\nhint: wait", said, re.M), said
    assert owner.wait_for(3)
    owner.send(signal.SIGKILL)
    assert owner.end()[0] == -signal.SIGKILL
    again = Forked(*shared, cwd=folders[0])
    assert again.wait_for(3), again.end()
    again.send(signal.SIGTERM)
    assert again.end()[0] == 143
    note(
        "concurrent starts",
        "50 on one folder: 1 goes on, 49 exit 7 naming it; restart after kill -9",
        f"{starts} starts: 1 goes on, {len(ends)} exit 7, restart at once",
    )


def test_asking_whether_a_folder_is_held_keeps_nobody_from_taking_it(tmp_path: Path) -> None:
    """A report of a sweep asks while a job starts."""
    done = context().Event()
    asking = context().Process(target=asks, args=(tmp_path, done))
    asking.start()
    try:
        for _ in range(scaled(300, 5000)):
            lock_folder(tmp_path)
            unlock_folder(str(tmp_path))
    finally:
        done.set()
        asking.join(LONGEST)
    assert asking.exitcode == 0


def asks(folder: Path, done: Event) -> None:
    while not done.is_set():
        is_locked(folder)


def test_a_run_that_has_ended_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    short = [*RUN, "train.total_steps=2"]
    assert forked(*short, cwd=tmp_path)[0] == 0
    assert not is_locked(tmp_path / "runs" / "run")
    assert forked(*short, cwd=tmp_path)[0] == 0
