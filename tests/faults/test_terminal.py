"""F35: a run continues when nobody reads its output; a terminal that goes away stops it resumably."""

import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from support.processes import announce, cli, start

from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.metrics import read_metrics

pytestmark = pytest.mark.slow
RUN = [
    "experiment=smoke_pretrain", "data.size=200", "model.V=300", "data.cache_dir=cache",
    "train.total_steps=12", "name=run",
]  # fmt: skip
OUT = Path("runs/run/pretrain")


def close_readers(*numbers: int) -> None:
    """Make descriptors pipes that nobody reads any more."""
    reading, writing = os.pipe()
    for number in numbers:
        os.dup2(writing, number)
    os.close(reading)
    os.close(writing)


def fill_disk(*numbers: int) -> None:
    """Make descriptors a full disk."""
    for number in numbers:
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def require_complete(folder: Path, step: int) -> None:
    steps = [event["step"] for event in read_metrics(folder / OUT / "metrics.jsonl") if event["event"] == "train"]
    assert read_checkpoint(folder / OUT / "latest.pt")["step"] == step and steps == list(range(1, step + 1))


@pytest.mark.parametrize("spoil", [close_readers, fill_disk])
def test_a_run_outlives_the_readers_of_its_output(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    assert cli(*RUN, cwd=tmp_path, before=partial(spoil, 1, 2)).returncode == 0
    require_complete(tmp_path, 12)
    assert cli(*RUN, "train.B=0", cwd=tmp_path, before=partial(spoil, 1, 2)).returncode == 2
    short = cli("--help", cwd=tmp_path, before=partial(close_readers, 1), script="sample")
    assert (short.returncode, short.stderr) == (128 + signal.SIGPIPE, "")


def test_a_run_without_any_streams_writes_only_to_its_own_files(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *RUN]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, cwd=tmp_path, timeout=300, check=False).returncode == 0
    require_complete(tmp_path, 12)
    lines = (tmp_path / "runs" / "run" / "run.lock").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("process ")


def take_terminal(name: str, *ignored: int) -> None:
    """Make this process the leader of a session on a terminal, as a shell's job is."""
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    os.setsid()
    terminal = os.open(name, os.O_RDWR)  # which makes it the controlling one
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    os.environ["TERM"] = "xterm"
    announce("train.loop.steps.optimizer_step")


def lose_terminal(folder: Path, *ignored: int) -> int:
    """Take the terminal from a run while it trains; return its exit code."""
    ours, theirs = pty.openpty()
    run = start(
        *RUN, "train.total_steps=60", cwd=folder, before=partial(take_terminal, os.ttyname(theirs), *ignored)
    )
    os.set_blocking(ours, False)
    while run.process.is_alive() and not (folder / "reached").exists():
        with suppress(OSError):  # read it: the run would wait once it is full
            os.read(ours, 65536)
        time.sleep(0.001)
    os.close(theirs)
    os.close(ours)
    return run.end().returncode


def test_a_terminal_that_goes_away_stops_the_run_resumably(tmp_path: Path) -> None:
    assert lose_terminal(tmp_path) == 128 + signal.SIGHUP
    assert 0 < read_checkpoint(tmp_path / OUT / "latest.pt")["step"] < 60
    assert cli(*RUN, "train.total_steps=60", cwd=tmp_path).returncode == 0
    require_complete(tmp_path, 60)


def test_under_nohup_a_run_continues_without_its_terminal(tmp_path: Path) -> None:
    assert lose_terminal(tmp_path, signal.SIGHUP) == 0
    require_complete(tmp_path, 60)
