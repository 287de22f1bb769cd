"""F4, F35, F36: real signals at random times in every phase of a run, and what goes on from there."""

import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, same

from faults.forked import NAMES, Forked, forked
from faults.scale import note, scaled
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.checkpointing import save_step
from train.artifacts.metrics import read_metrics
from train.loop import steps

RUN = [
    "experiment=smoke_pretrain", "data.size=200", "model.V=300", "model.dropout=0.1", "data.cache_dir=cache",
    "train.total_steps=60", "train.eval_every=2", "train.ckpt_every=3", "train.eval_sequences=64",
    "train.log_every=2", "name=run",
]  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FOLDER = Path("runs/run/pretrain")
SAVED_STATE = ("model_state", "optimizer_state", "step", "best_val_loss")


def outcome(folder: Path) -> list[Any]:
    """Return weights, optimizer state and metrics, but for what metrics say of the machine."""
    events = [
        {key: value for key, value in event.items() if key not in ("tokens_per_second", "memory")}
        for event in read_metrics(folder / FOLDER / "metrics.jsonl")
    ]
    states = [read_checkpoint(folder / FOLDER / name) for name in ("latest.pt", "best.pt")]
    return [events, [{key: state[key] for key in SAVED_STATE} for state in states]]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The outcome of the run that no signal reaches."""
    folder = tmp_path_factory.mktemp("straight")
    code, said = forked(*RUN, cwd=folder)
    assert code == 0, said
    return outcome(folder)


def stopped(folder: Path, phase: int, signum: int, draw: random.Random) -> tuple[float, int] | None:
    """Stop a run in a phase; return the seconds that it took to end and what it was doing, None if it was done."""
    run = Forked(*RUN, cwd=folder)
    if phase:
        run.wait_for(phase)
        time.sleep(draw.uniform(0, 0.01))
    else:
        run.wait_for(0)
        time.sleep(draw.uniform(0, 1.0))  # Hydra, the gate, or what comes after
    doing, sent = run.phase(), time.monotonic()
    with suppress(ProcessLookupError):
        run.send(signum)
    code, said = run.end()
    if code == 0:
        return None
    assert code == 128 + signum, (code, said, phase)
    assert "Traceback" not in said and (", saved; " in said or "files are intact" in said or not said), said
    return time.monotonic() - sent, doing


def test_a_run_that_signals_stop_in_every_phase_ends_as_one_that_never_stopped(
    tmp_path: Path, straight: list[Any]
) -> None:
    """Promise: the exit code says which signal, what is saved goes on to the bit."""
    asked, chains = scaled(5, 90), 0
    took: list[tuple[float, int]] = []
    while len(took) < asked:
        folder, draw = tmp_path / str(chains), random.Random(chains)
        folder.mkdir()
        for at, phase in enumerate([1, 2, 4, 5, 3, 0, 4, 3, 5, 4][: asked - len(took)]):
            if (end := stopped(folder, phase, SIGNALS[(chains + at) % 3], draw)) is None:
                break  # it was faster than the signal
            took.append(end)
        code, said = forked(*RUN, cwd=folder)
        assert code == 0, said
        assert same(straight, outcome(folder))
        chains += 1
    met = [NAMES.get(doing, "else") for _, doing in took]
    where = ", ".join(f"{met.count(name)} {name}" for name in sorted(set(met)))
    note(
        "signals in a run",
        "90 SIGINT, SIGTERM, SIGHUP in every phase: exit code right, resume bitwise",
        f"{len(took)} ({where}), 0 wrong, {chains} of {chains} chains bitwise; slowest end {max(took)[0]:.1f} s",
    )


def hears(pid: int, signum: int) -> bool:
    """Return whether a process has a handler of its own, where Linux tells of that."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(line for line in lines if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_signal_while_all_is_being_imported_has_its_exit_code_and_no_traceback(tmp_path: Path) -> None:
    draw, tries = random.Random(7), scaled(1, 10)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *RUN, "train.total_steps=1000000"]
    for number in range(tries):
        signum = SIGNALS[number % 3]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            while not hears(process.pid, signal.SIGTERM):
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 2.5))
            process.send_signal(signum)
            said = process.communicate(timeout=120)[1].decode()
        assert process.returncode == 128 + signum, said
        assert "Traceback" not in said and "it is a bug" not in said
    note("signals in imports", "10 real ones at U(0, 2.5 s): exit code right", f"{tries} signals, 0 wrong")


def slow_to_save() -> None:
    save = save_step

    def slowly(*args: Any, **kwargs: Any) -> None:
        if args[1].step > 4:
            Path("waiting").touch()
            time.sleep(60)
        save(*args, **kwargs)

    vars(steps)["save_step"] = slowly


def test_a_second_signal_ends_the_run_at_once_and_harms_nothing(tmp_path: Path, straight: list[Any]) -> None:
    for number in range(scaled(1, 3)):
        signum = SIGNALS[(number + 1) % 3]
        folder = tmp_path / str(number)
        folder.mkdir()
        run = Forked(*RUN, cwd=folder, before=slow_to_save)
        while not (folder / "waiting").exists():
            time.sleep(0.01)
        run.send(signum)
        time.sleep(0.3)
        assert run.process.is_alive(), "the first one waits for the save"
        sent = time.monotonic()
        run.send(signum)
        assert run.end()[0] == -signum
        assert time.monotonic() - sent < 20
        assert forked(*RUN, cwd=folder)[0] == 0
        assert same(straight, outcome(folder))


def test_a_run_that_is_suspended_and_continued_ends_as_one_that_was_not(
    tmp_path: Path, straight: list[Any]
) -> None:
    draw, run = random.Random(3), Forked(*RUN, cwd=tmp_path)
    run.wait_for(3)
    pauses = 0
    while run.process.is_alive() and pauses < scaled(3, 20):
        run.send(signal.SIGSTOP)
        time.sleep(draw.uniform(0.01, 0.2))
        run.send(signal.SIGCONT)
        pauses += 1
        time.sleep(draw.uniform(0.001, 0.01))
    code, said = run.end()
    assert code == 0, said
    assert same(straight, outcome(tmp_path))
    note("suspended and continued", "SIGSTOP/SIGCONT, bitwise", f"{pauses} pauses, bitwise")
