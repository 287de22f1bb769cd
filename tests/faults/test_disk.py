"""F5, F6, F28: a disk that is full, read-only or gone, while checkpoints, metrics, logs and caches are written."""

import errno
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo  # an optimizer does so, and a user who may read nothing could not
from conftest import Plan, Run, carry_out, same
from support.processes import cli

from faults.folders import leftovers, opened, synthetic
from faults.scale import scaled
from niels_gpt.config import ModelCfg
from niels_gpt.data.token_files import write_meta
from niels_gpt.errors import DiskError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import BytesTokenizer, train_bpe
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.llama import export_llama
from train.artifacts import disk, metrics
from train.artifacts.checkpointing import TrainState, save_step
from train.artifacts.paths import step_path
from train.cli.output import write_report
from train.config.schema import TrainCfgSchema
from train.loop import logger
from train.loop.optim import make_optimizer
from train.loop.steps import optimizer_step

STEP = 64 * 1024  # bytes from point to point
TRAIN = ["data.size=200", "model.V=300", "train.total_steps=8", "train.ckpt_every=1", "train.keep_last=9"]


@contextmanager
def mounted(size: int) -> Iterator[Path]:
    """Give a file system of `size` bytes; root alone can make one."""
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a small file system")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "-l", name], check=True)


def leave(folder: Path, room: int) -> None:
    """Fill a small file system up to `room` bytes."""
    filler = folder / "filler"
    filler.unlink(missing_ok=True)
    filler.write_bytes(b"x" * max(0, shutil.disk_usage(folder).free - room))


@contextmanager
def allowed(size: int) -> Iterator[None]:
    """Let this process write files of `size` bytes at most."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def made_state() -> TrainState:
    model = GPT(ModelCfg(V=512, T=8, C=128, L=1, H=2, d_ff=256, tie_embeddings=True))
    state = TrainState(model, make_optimizer(model, TrainCfgSchema()), 1)
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    state.optimizer.step()
    return state


def require_safe_failure(folder: Path, state: TrainState, before: bytes, room: int) -> None:
    """Assert that a save on a full disk says so, leaves the earlier checkpoint, and nothing else."""
    names = sorted(os.listdir(folder))
    with allowed(room), pytest.raises(DiskError) as caught:
        save_step(folder, state, {}, best=False, keep_last=2)
    told = r"disk full: need (\d+\.\d) MB, have (\d+\.\d) MB at (\S+)( for \.step_0000002\.pt\.part)?"
    said = re.fullmatch(told, str(caught.value))
    assert said and said[3] == str(folder) and float(said[2]) <= float(said[1]), caught.value
    assert (caught.value.exit_code, "free some space" in caught.value.hint) == (8, True)
    assert sorted(os.listdir(folder)) == names
    assert step_path(folder, 1).read_bytes() == (folder / "latest.pt").read_bytes() == before


def test_a_disk_that_is_full_at_any_point_of_a_save_is_named_and_harms_nothing(tmp_path: Path) -> None:
    state = made_state()
    save_step(tmp_path, state, {}, best=False, keep_last=2)
    before, state.step = step_path(tmp_path, 1).read_bytes(), 2
    for point in range(0, len(before), STEP * scaled(8, 1)):
        require_safe_failure(tmp_path, state, before, point)
        with mock.patch.object(disk, "require_room"):  # the check before the save, without which the writes fail
            require_safe_failure(tmp_path, state, before, point)


def test_a_run_whose_disk_fills_up_ends_with_8_and_goes_on_when_there_is_room(
    run_folder: Run, tmp_path: Path
) -> None:
    straight = run_folder(*TRAIN) / "pretrain"
    with mounted(6 << 20) as small:
        out = small / "run" / "pretrain"
        arguments = ["experiment=smoke_pretrain", *TRAIN, f"dir={small}/run", f"data.cache_dir={tmp_path}/cache"]
        leave(small, 1 << 20)
        done = cli(*arguments, cwd=tmp_path)
        said = done.stderr
        assert done.returncode == 8, said
        assert re.search(r"^error: disk full: need \d\.\d MB, have \d\.\d MB at .*/run/pretrain$", said, re.M)
        assert re.search(r"^hint: free some space", said, re.M) and "Traceback" not in said
        assert "Traceback" in (small / "run" / "train.log").read_text(), "the log has the whole trace"
        assert not list(small.rglob("*.part"))
        (small / "filler").unlink()
        assert cli(*arguments, cwd=tmp_path).returncode == 0
        assert same(*(read_checkpoint(path / "latest.pt")["model_state"] for path in (straight, out)))


def test_a_line_of_metrics_that_went_half_onto_the_disk_is_taken_back() -> None:
    with mounted(4096) as small:
        path = small / metrics.METRICS
        written = 0
        with pytest.raises(OSError, match="No space left"):
            for step in range(1000):
                metrics.append_event(path, {"step": step, "event": "train", "loss": 1.25})
                written += 1
        assert [event["step"] for event in metrics.read_metrics(path)] == list(range(written))
        assert path.read_bytes().endswith(b"}\n")
        metrics.truncate_metrics(path, 10, evaluated=True)  # as a resumed run does, still without room
        metrics.append_event(path, {"step": 11, "event": "train"})
        assert [event["step"] for event in metrics.read_metrics(path)] == list(range(12))


def fail_to_append() -> None:
    def fail(path: Path, _: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    vars(logger)["append_event"] = fail


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_log_and_metrics_that_find_no_room_are_warned_of_once_and_training_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "smoke_pretrain"
    folder.mkdir(parents=True)
    (folder / "train.log").symlink_to("/dev/full")
    done = cli("experiment=smoke_pretrain", *TRAIN, cwd=tmp_path, before=fail_to_append)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for name in ("train.log", "metrics.jsonl"):
        assert len(re.findall(rf"warning: .*{name} cannot be written", said)) == 1, said
    assert "Traceback" not in said and "Logging error" not in said
    assert read_checkpoint(folder / "pretrain" / "latest.pt")["step"] == 8


WRITERS: dict[str, Callable[[Path], Any]] = {
    r"\.documents-synthetic-\w+\.part/train\.ids": lambda folder: opened(synthetic(folder, size=2000)),
    "tokenizer.json": lambda folder: train_bpe([], 261).save(folder / "tokenizer.json"),
    "meta.json": lambda folder: write_meta(folder, {"name": "x" * 4096}),
    "doctor.json": lambda folder: write_report(folder / "doctor.json", "x" * 4096),
    r"\.out\.part/model\.safetensors": lambda folder: export_llama(
        made_state().model, BytesTokenizer(), folder / "out"
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_finds_no_room_is_named_with_what_is_there_and_leaves_nothing_half_done(
    tmp_path: Path, name: str
) -> None:
    with allowed(2048), pytest.raises(OSError) as caught:
        WRITERS[name](tmp_path)
    said = str(disk.make_disk_error(caught.value))
    assert re.fullmatch(rf"disk full: have \d+\.\d MB at {tmp_path}\S* for {name}", said), said
    assert not leftovers(tmp_path) and not (tmp_path / "out").exists()


@contextmanager
def as_nobody() -> Iterator[Path]:
    """Be a user whom modes concern, which root ignores; give a folder that this user can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


def carry_out_in(folder: Path, plan: Plan, *overrides: str) -> None:
    carry_out(plan(*TRAIN, f"dir={folder}/run", f"data.cache_dir={folder}/cache", *overrides))


@pytest.mark.parametrize("what", ["run", "run/pretrain", "cache"])
def test_a_folder_that_cannot_be_written_to_is_found_out_before_any_step(plan: Plan, what: str) -> None:
    """F28: by a real write."""
    step = mock.patch("train.loop.steps.optimizer_step", side_effect=AssertionError)
    with as_nobody() as folder, step:
        for name in ("run/pretrain", "cache"):
            (folder / name).mkdir(parents=True)
        (folder / what).chmod(0o555)
        with pytest.raises((DiskError, PermissionError)) as caught:  # the command line makes 8 of both
            carry_out_in(folder, plan)
    error = disk.make_disk_error(caught.value) if isinstance(caught.value, OSError) else caught.value
    assert isinstance(error, DiskError) and error.exit_code == 8
    assert f"{folder}/{what}/" in str(error) and "Permission denied" in str(error)


def test_a_complete_cache_may_be_read_only(plan: Plan) -> None:
    with as_nobody() as folder:
        carry_out_in(folder, plan, "train.total_steps=1")
        for path in (folder / "cache", *(folder / "cache").rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        shutil.rmtree(folder / "run")
        carry_out_in(folder, plan, "train.total_steps=1")


@pytest.mark.parametrize("gone", ["run", "run/pretrain"])
def test_a_folder_that_goes_away_under_a_run_ends_it_with_a_clear_text(
    run_folder: Run, tmp_path: Path, gone: str
) -> None:
    def removed_at_2(state: Any, *rest: Any) -> Any:
        if state.step == 2:
            shutil.rmtree(tmp_path / gone)
        return optimizer_step(state, *rest)

    with mock.patch("train.loop.steps.optimizer_step", removed_at_2), pytest.raises(DiskError) as caught:
        run_folder(*TRAIN)
    assert str(caught.value) == f"{tmp_path}/run/pretrain: the folder does not exist"
    assert caught.value.exit_code == 8
