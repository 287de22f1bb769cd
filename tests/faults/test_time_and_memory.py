"""F30 to F33: a limit of time, clocks that jump, and memory that runs out."""

import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Plan, Run, final, metrics, same
from support.processes import cli, limit_memory

from faults.scale import scaled
from niels_gpt.errors import OutOfMemory, TimeIsUp
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.metrics import read_metrics
from train.artifacts.results import read_results
from train.hardware.out_of_memory import explain_out_of_memory
from train.loop.steps import optimizer_step
from train.run import time_limit
from train.run.time_limit import TimeLimit

SETTINGS = ["train.total_steps=9", "train.ckpt_every=4", "train.eval_every=3", "model.dropout=0.1"]


@contextmanager
def half_a_minute_a_step() -> Iterator[None]:
    """Let the clock of budgets go on by half a minute in each step, and not otherwise."""
    now = [1000.0]

    def step(*args: Any) -> Any:
        now[0] += 30.0
        return optimizer_step(*args)

    clock = mock.Mock(monotonic=lambda: now[0])
    with mock.patch.object(time_limit, "time", clock), mock.patch("train.loop.steps.optimizer_step", step):
        yield


def trained(folder: Path) -> list[Any]:
    return [final(folder), metrics(folder)]


def test_a_limit_of_time_counts_over_resumes_and_what_goes_on_is_exact(run_folder: Run, tmp_path: Path) -> None:
    """F30."""
    straight = trained(run_folder(*SETTINGS, name="straight") / "pretrain")
    folder = tmp_path / "run" / "pretrain"
    with half_a_minute_a_step():
        for minutes, reached in ((1, 2), (1, 2), (2.5, 5), (2.5, 5), (3, 6)):
            with pytest.raises(TimeIsUp) as caught:
                run_folder(*SETTINGS, f"train.max_minutes={minutes}")
            stopped = f"stopped at step {reached}, saved"
            assert str(caught.value) == f"pretrain: train.max_minutes={float(minutes)} reached, {stopped}"
            hint = "continue with a larger train.max_minutes=..."
            assert (caught.value.exit_code, caught.value.hint) == (75, hint)
            assert read_checkpoint(folder / "latest.pt")["step"] == reached
        run_folder(*SETTINGS, "train.max_minutes=60")
    assert same(straight, trained(folder))
    run_folder(*SETTINGS, "train.max_minutes=1")  # what is complete is complete


def test_a_phase_begun_anew_has_all_of_its_time(run_folder: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "pretrain"
    with half_a_minute_a_step():
        for _ in range(2):
            with pytest.raises(TimeIsUp, match="reached, stopped at step 2, saved"):
                run_folder(*SETTINGS, "train.max_minutes=1")
            for path in folder.glob("*.pt"):
                path.unlink()


def test_a_killed_process_has_used_its_time_too(tmp_path: Path) -> None:
    (tmp_path / "step_0000001.pt").touch()
    now = [50.0]
    with mock.patch.object(time_limit, "time", mock.Mock(monotonic=lambda: now[0])):
        first = TimeLimit(tmp_path, 1.0)
        for later in (55.0, 70.0, 75.0):
            now[0] = later
            assert not first.is_reached()
        now[0] = 500.0  # `first` is gone: it had noted 20 seconds
        second = TimeLimit(tmp_path, 1.0)
        now[0] = 539.0
        assert second.seconds() == 59.0 and not second.is_reached()
        now[0] = 540.0
        assert second.is_reached()


@pytest.mark.parametrize("damage", ["", "[]", '{"seconds": NaN}'])
def test_a_damaged_note_of_the_time_has_noted_nothing(tmp_path: Path, damage: str) -> None:
    (tmp_path / time_limit.TIME).write_text(damage)
    assert 0 <= TimeLimit(tmp_path, 1.0).seconds() < 30


def test_the_command_line_ends_with_75_and_goes_on(tmp_path: Path) -> None:
    arguments = ["experiment=smoke_pretrain", *SETTINGS, "data.size=200", "model.V=300"]
    done = cli(*arguments, "train.max_minutes=1e-6", cwd=tmp_path)
    said = r"^pretrain: train.max_minutes=1e-06 reached, stopped .*; continue with a larger train.max_minutes=...$"
    assert done.returncode == 75 and re.search(said, done.stdout + done.stderr, re.M), done.stderr
    assert cli(*arguments, cwd=tmp_path).returncode == 0


def test_a_clock_that_jumps_changes_nothing(run_folder: Run) -> None:
    """F31: back by a day, ahead by a year, at every look."""
    straight = trained(run_folder(*SETTINGS, name="straight") / "pretrain")
    draw = random.Random(0)
    jumping = mock.patch.object(time, "time", lambda: draw.choice((0.0, 1e9, 2e9, -1.0)))
    with jumping, mock.patch.object(time, "time_ns", lambda: draw.randrange(2 * 10**18)):
        folder = run_folder(*SETTINGS, name="jumping")
    assert same(straight, trained(folder / "pretrain"))
    events = list(read_metrics(folder / "pretrain" / "metrics.jsonl"))
    assert all(event["tokens_per_second"] > 0 for event in events if event["event"] == "train")
    assert 0 <= read_results(folder)["pretrain"].seconds < 600


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and RLIMIT_AS")
def test_a_limit_of_memory_ends_in_one_message_with_the_way_out(tmp_path: Path) -> None:
    """F32: whatever it is that finds no room."""
    big = ["experiment=smoke_pretrain", "data.size=3000", "model.T=512", "model.C=256", "train.B=64"]
    big += [f"data.cache_dir={tmp_path}/cache"]
    small = ["model.T=64", "model.C=32", "train.B=1", "train.total_steps=1"]
    assert cli(*big, *small, cwd=tmp_path).returncode == 0  # trains the tokenizer, which aborts without memory
    for mebibytes in (32, 48, 64, 96, 128, 192, 256, 320, 384, 512)[:: scaled(7, 1)]:
        (folder := tmp_path / str(mebibytes)).mkdir()
        done = cli(*big, cwd=folder, before=partial(limit_memory, mebibytes << 20))
        said = done.stderr
        assert done.returncode == 6, (mebibytes, said)
        assert re.search(r"^error: out of memory.*\nhint: \S", said, re.M) and "Traceback" not in said, said
        assert "memory=ckpt" in said and "train.B=32 train.accum_steps=4 (the same training)" in said, said


def test_an_mps_allocation_that_fails_is_explained_with_both_figures(plan: Plan) -> None:
    """F33."""
    (cfg,) = plan("train.B=8", "train.accum_steps=2")
    figures = {"current_allocated_memory": 3 << 30, "driver_allocated_memory": 7 << 30}
    with mock.patch.multiple(torch.mps, **{name: mock.Mock(return_value=n) for name, n in figures.items()}):
        with pytest.raises(OutOfMemory) as caught, explain_out_of_memory(cfg, torch.device("mps")):
            raise RuntimeError("Invalid buffer size: 12.21 GiB")
    said = str(caught.value)
    for part in ("train.B=8", "model.T=64", "train.accum_steps=2", "3.0 GiB in tensors", "7.0 GiB", "12.21 GiB"):
        assert part in said
    for way_out in ("memory=ckpt", "train.B=4 train.accum_steps=4 (the same training)", "model.T"):
        assert way_out in caught.value.hint
    assert caught.value.exit_code == 6
