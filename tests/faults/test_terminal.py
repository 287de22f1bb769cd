"""F35: a run does not end because nobody reads what it says; a terminal that goes away stops it resumably."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from faults.forked import Forked, forked
from faults.scale import note
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.metrics import read_metrics

RUN = [
    "experiment=smoke_pretrain", "data.size=200", "model.V=300", "data.cache_dir=cache",
    "train.total_steps=12", "name=run",
]  # fmt: skip
OUT = Path("runs/run/pretrain")


def unread(*numbers: int) -> None:
    """Make descriptors pipes that nobody reads any more."""
    reading, writing = os.pipe()
    for number in numbers:
        os.dup2(writing, number)
    os.close(reading)
    os.close(writing)


def full(*numbers: int) -> None:
    """Make descriptors a disk that is full."""
    for number in numbers:
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def complete(folder: Path, step: int) -> bool:
    """Return whether a run has come to its end, and told of it in order."""
    steps = [event["step"] for event in read_metrics(folder / OUT / "metrics.jsonl") if event["event"] == "train"]
    return read_checkpoint(folder / OUT / "latest.pt")["step"] == step and steps == list(range(1, step + 1))


@pytest.mark.parametrize("which", [(1,), (2,), (1, 2)], ids=str)
@pytest.mark.parametrize("spoil", [unread, full])
def test_a_run_outlives_whoever_reads_its_output(tmp_path: Path, spoil: Callable[..., None], which: Any) -> None:
    assert forked(*RUN, cwd=tmp_path, before=partial(spoil, *which))[0] == 0
    assert complete(tmp_path, 12)


def test_an_error_that_nobody_reads_has_its_exit_code(tmp_path: Path) -> None:
    assert forked(*RUN, "train.B=0", cwd=tmp_path, before=partial(unread, 1, 2))[0] == 2
    assert forked(*RUN, "data=text", "data.files=[missing]", cwd=tmp_path, before=partial(full, 1, 2))[0] == 3


def test_a_short_command_whose_reader_has_gone_ends_quietly(tmp_path: Path) -> None:
    code, said = forked("--help", cwd=tmp_path, before=partial(unread, 1), script="sample")
    assert (code, said) == (128 + signal.SIGPIPE, "")


def test_a_run_that_is_started_without_any_streams_writes_only_to_its_own_files(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *RUN]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, cwd=tmp_path, timeout=300, check=False).returncode == 0
    assert complete(tmp_path, 12)
    lines = (tmp_path / "runs" / "run" / "run.lock").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("process ")


def on_a_terminal(name: str, *ignored: int) -> None:
    """Make this process the leader of a session on a terminal, as a shell's job is."""
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    os.setsid()
    terminal = os.open(name, os.O_RDWR)  # which makes it the controlling one
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    os.environ["TERM"] = "xterm"


def ended_without_its_terminal(folder: Path, *ignored: int) -> int:
    """Take the terminal from a run while it learns; return its exit code."""
    ours, theirs = pty.openpty()
    before = partial(on_a_terminal, os.ttyname(theirs), *ignored)
    run = Forked(*RUN, "train.total_steps=60", cwd=folder, before=before)
    os.set_blocking(ours, False)
    while run.process.is_alive() and run.phase() != 3:
        with suppress(OSError):  # read it: the run would wait once it is full
            os.read(ours, 65536)
        time.sleep(0.0005)
    os.close(theirs)
    os.close(ours)
    return run.end()[0]


def test_a_terminal_that_goes_away_stops_the_run_resumably(tmp_path: Path) -> None:
    assert ended_without_its_terminal(tmp_path) == 128 + signal.SIGHUP
    step = read_checkpoint(tmp_path / OUT / "latest.pt")["step"]
    assert 0 < step < 60
    assert forked(*RUN, "train.total_steps=60", cwd=tmp_path)[0] == 0
    assert complete(tmp_path, 60)


def test_under_nohup_a_run_goes_on_without_its_terminal(tmp_path: Path) -> None:
    assert ended_without_its_terminal(tmp_path, signal.SIGHUP) == 0
    assert complete(tmp_path, 60)
    note("readers and terminals gone", "training never dies of it; SIGHUP: resumable, exit 129", "as asked")
