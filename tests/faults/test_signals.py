"""F4, F35, F36: real signals in every part of a run, and terminals and readers of its output that go away."""

import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT
from support.processes import announce, cli, reset_signals, start, wait_until

from faults.folders import require_equal
from faults.scale import scaled
from train.artifacts.checkpointing import TrainState, save_step
from train.loop import steps

pytestmark = pytest.mark.slow
RUN = [
    "experiment=smoke_pretrain", "data.size=200", "model.V=300", "model.dropout=0.1", "data.cache_dir=cache",
    "train.total_steps=40", "train.eval_every=2", "train.ckpt_every=3", "train.eval_sequences=64",
    "train.log_every=2", "name=run",
]  # fmt: skip
COMMAND = [sys.executable, str(ROOT / "scripts" / "train.py"), *RUN]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RUN_FOLDER = Path("runs/run")
PARTS = {  # of a run, each with the longest time from its begin to the signal, in seconds
    "train.run.runner.open_tokenizer": 0.01,
    "train.run.data.open_cache": 0.05,
    "train.loop.steps.evaluate": 0.01,
    "train.loop.steps.save_step": 0.01,
    "train.loop.steps.optimizer_step": 0.3,
    "train.config.load_plan": 0.5,
}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that no signal reached."""
    folder = tmp_path_factory.mktemp("straight")
    done = cli(*RUN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / RUN_FOLDER


def stop_in(part: str, folder: Path, signum: int, draw: random.Random) -> bool:
    """Send a signal to a run at a random time in a part of it; return whether it came before the run's end."""
    (folder / "reached").unlink(missing_ok=True)
    run = start(*RUN, cwd=folder, before=partial(announce, part))
    run.wait_for("reached")
    time.sleep(draw.uniform(0, PARTS[part]))
    sent = time.monotonic()
    with suppress(ProcessLookupError):
        run.send(signum)
    done = run.end()
    assert done.returncode in (0, 128 + signum), (part, done.stderr)
    said = done.stdout + done.stderr
    assert "Traceback" not in said and time.monotonic() - sent < 20, (part, said)
    assert not done.returncode or "stopped" in said, (part, said)
    return done.returncode != 0


def test_a_run_that_signals_stop_in_every_part_ends_as_one_that_never_stopped(
    tmp_path: Path, straight: Path
) -> None:
    """The exit code says which signal; what is saved continues bit for bit."""
    stops = 0
    for chain in range(scaled(1, 15)):
        (folder := tmp_path / str(chain)).mkdir()
        for number, part in enumerate(PARTS):
            stops += stop_in(part, folder, SIGNALS[(chain + number) % 3], random.Random(f"{chain} {part}"))
        done = cli(*RUN, cwd=folder)
        assert done.returncode == 0, done.stderr
        require_equal(folder / RUN_FOLDER, straight)
    assert stops > 3 * scaled(1, 15)


def handles_signals(pid: int) -> bool:
    caught = re.search(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_signal_during_the_imports_has_its_exit_code_and_no_traceback(tmp_path: Path) -> None:
    draw = random.Random(7)
    for signum in SIGNALS * scaled(1, 4):
        with subprocess.Popen(
            [*COMMAND, "train.total_steps=1000000"], cwd=tmp_path, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, preexec_fn=reset_signals,
        ) as process:  # fmt: skip
            wait_until(partial(handles_signals, process.pid))
            time.sleep(draw.uniform(0, 2.5))
            process.send_signal(signum)
            said = process.communicate(timeout=120)[1].decode()
        assert process.returncode == 128 + signum, said
        assert "Traceback" not in said and "it is a bug" not in said


def slow_down_saves() -> None:
    def save_slowly(folder: Path, state: TrainState, *rest: object, **keywords: object) -> None:
        if state.step > 4:
            Path("waiting").touch()
            time.sleep(60)
        save_step(folder, state, *rest, **keywords)  # type: ignore[arg-type]

    vars(steps)["save_step"] = save_slowly


def test_a_second_signal_ends_the_run_at_once_and_harms_nothing(tmp_path: Path, straight: Path) -> None:
    for signum in SIGNALS[: scaled(1, 3)]:
        (folder := tmp_path / str(signum)).mkdir()
        run = start(*RUN, cwd=folder, before=slow_down_saves)
        assert run.wait_for("waiting")
        run.send(signum)
        time.sleep(0.3)
        assert run.process.is_alive(), "the first one waits for the save"
        sent = time.monotonic()
        run.send(signum)
        assert run.end().returncode == -signum
        assert time.monotonic() - sent < 20
        assert cli(*RUN, cwd=folder).returncode == 0
        require_equal(folder / RUN_FOLDER, straight)


def test_a_run_that_is_suspended_and_continued_ends_as_one_that_was_not(tmp_path: Path, straight: Path) -> None:
    draw = random.Random(3)
    run = start(*RUN, cwd=tmp_path, before=partial(announce, "train.loop.steps.optimizer_step"))
    assert run.wait_for("reached")
    for _ in range(scaled(3, 20)):
        with suppress(ProcessLookupError):
            run.send(signal.SIGSTOP)
            time.sleep(draw.uniform(0.01, 0.2))
            run.send(signal.SIGCONT)
            time.sleep(draw.uniform(0.001, 0.01))
    done = run.end()
    assert done.returncode == 0, done.stderr
    require_equal(tmp_path / RUN_FOLDER, straight)


def close_readers() -> None:
    """Make the output a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    for number in (1, 2):
        os.dup2(writing, number)


def fill_disk() -> None:
    """Let the output go to a full disk."""
    for number in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)


@pytest.mark.parametrize("spoil", [close_readers, fill_disk])
def test_a_run_outlives_the_readers_of_its_output(
    tmp_path: Path, straight: Path, spoil: Callable[[], None]
) -> None:
    assert cli(*RUN, cwd=tmp_path, before=spoil).returncode == 0
    require_equal(tmp_path / RUN_FOLDER, straight)
    assert cli(*RUN, "train.B=0", cwd=tmp_path, before=spoil).returncode == 2


def test_help_that_nobody_reads_ends_as_a_broken_pipe_does(tmp_path: Path) -> None:
    assert cli("--help", cwd=tmp_path, before=close_readers, script="sample").returncode == 128 + signal.SIGPIPE


def test_a_run_without_any_streams_writes_only_to_its_own_files(tmp_path: Path, straight: Path) -> None:
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *COMMAND]
    assert subprocess.run(closed, cwd=tmp_path, timeout=300, check=False).returncode == 0
    require_equal(tmp_path / RUN_FOLDER, straight)
    lines = (tmp_path / RUN_FOLDER / "run.lock").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("process ")


def take_terminal(name: str, on_hangup: signal.Handlers) -> None:
    """Make this process the leader of a session on a terminal, as a shell's job is."""
    signal.signal(signal.SIGHUP, on_hangup)
    os.setsid()
    terminal = os.open(name, os.O_RDWR)  # which makes it the controlling one
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    os.environ["TERM"] = "xterm"
    announce("train.loop.steps.optimizer_step")


@pytest.mark.parametrize(("on_hangup", "code"), [(signal.SIG_DFL, 129), (signal.SIG_IGN, 0)], ids=["", "nohup"])
def test_a_terminal_that_goes_away_stops_the_run_resumably_but_not_under_nohup(
    tmp_path: Path, straight: Path, on_hangup: signal.Handlers, code: int
) -> None:
    ours, theirs = pty.openpty()
    run = start(*RUN, cwd=tmp_path, before=partial(take_terminal, os.ttyname(theirs), on_hangup))
    os.set_blocking(ours, False)
    while run.process.is_alive() and not (tmp_path / "reached").exists():
        with suppress(OSError):  # read it: the run would wait once it is full
            os.read(ours, 65536)
        time.sleep(0.001)
    os.close(theirs)
    os.close(ours)
    assert run.end().returncode == code
    assert not code or cli(*RUN, cwd=tmp_path).returncode == 0
    require_equal(tmp_path / RUN_FOLDER, straight)
