"""F4, F36: real signals at random times in every part of a run, and runs that continue from there."""

import random
import signal
import subprocess
import sys
import time
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


def has_handler(pid: int, signum: int) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_a_signal_during_the_imports_has_its_exit_code_and_no_traceback(tmp_path: Path) -> None:
    draw = random.Random(7)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *RUN, "train.total_steps=1000000"]
    for signum in SIGNALS * scaled(1, 4):
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=reset_signals
        ) as process:
            wait_until(lambda pid=process.pid: has_handler(pid, signal.SIGTERM))  # type: ignore[misc]
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
