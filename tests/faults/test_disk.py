"""F5, F6, F28: a disk that is full, read-only or gone, while checkpoints, metrics, logs and caches are written."""

import errno
import logging
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo  # an optimizer does so, and a user who may read nothing could not
from conftest import Plan, Run, carry_out
from support.processes import cli

from faults.folders import hashes, leftovers, opened, require_equal, synthetic
from faults.scale import scaled
from niels_gpt.config import ModelCfg
from niels_gpt.data.cache import token_build
from niels_gpt.data.cache.token_files import write_meta
from niels_gpt.errors import DiskError
from niels_gpt.model.gpt import GPT
from niels_gpt.tokenizer import BytesTokenizer, train_bpe
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.llama import export_llama
from niels_gpt.weights.paths import step_path
from train.artifacts import disk, metrics
from train.artifacts.checkpointing import TrainState, save_step
from train.cli.command import exit_on_error
from train.cli.output import write_result
from train.config.schema import TrainCfgSchema
from train.loop import logger
from train.loop.optim import make_optimizer
from train.loop.steps import optimizer_step

STEP = 64 * 1024  # bytes from point to point
TRAIN = ["data.size=200", "model.V=300", "train.total_steps=8", "train.ckpt_every=1", "train.keep_last=9"]


def limit_files(size: int) -> None:
    """Let this process write files of `size` bytes at most, as on a disk with so much room."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def allowed(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(size)
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


def test_a_disk_that_is_full_at_any_point_of_a_save_is_named_and_harms_nothing(tmp_path: Path) -> None:
    state = made_state()
    save_step(tmp_path, state, {}, best=False, keep_last=2)
    before, state.step, names = step_path(tmp_path, 1).read_bytes(), 2, sorted(os.listdir(tmp_path))
    told = r"disk full: need (\d+\.\d) MB, have (\d+\.\d) MB at (\S+)( for \.step_0000002\.pt\.part)?"
    for point in range(0, len(before), STEP * scaled(8, 1)):
        unchecked = mock.patch.object(disk, "require_room")  # without this check before a save the writes fail
        for check in (nullcontext(), unchecked):
            with check, allowed(point), pytest.raises(DiskError) as caught:
                save_step(tmp_path, state, {}, best=False, keep_last=2)
            said = re.fullmatch(told, str(caught.value))
            assert said and said[3] == str(tmp_path) and float(said[2]) <= float(said[1]), caught.value
            assert (caught.value.exit_code, "free some space" in caught.value.hint) == (8, True)
            assert sorted(os.listdir(tmp_path)) == names
            assert step_path(tmp_path, 1).read_bytes() == (tmp_path / "latest.pt").read_bytes() == before


def test_a_run_whose_disk_fills_up_ends_with_8_and_goes_on_when_there_is_room(
    run_folder: Run, tmp_path: Path, cache_dir: Path
) -> None:
    straight = run_folder(*TRAIN, name="straight")
    arguments = ["experiment=smoke_pretrain", *TRAIN, f"dir={tmp_path}/run", f"data.cache_dir={cache_dir}"]
    done = cli(*arguments, cwd=tmp_path, before=partial(limit_files, STEP))
    assert done.returncode == 8, done.stderr
    told = r"^error: disk full: need \d\.\d MB, have \d\.\d MB at \S*/run/pretrain\nhint: free some space"
    assert re.search(told, done.stderr, re.M) and "Traceback" not in done.stderr, done.stderr
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text(), "the log has the whole trace"
    assert not leftovers(tmp_path)
    assert cli(*arguments, cwd=tmp_path).returncode == 0
    require_equal(tmp_path / "run", straight)


def test_a_line_of_metrics_that_went_half_onto_the_disk_is_taken_back(tmp_path: Path) -> None:
    path, written = tmp_path / metrics.METRICS, 0
    with allowed(4100):
        with pytest.raises(OSError):
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
    for name in ("train.log", "metrics.jsonl"):
        assert len(re.findall(rf"warning: .*{name} cannot be written", said)) == 1, said
    assert done.returncode == 0 and "Traceback" not in said and "Logging error" not in said, said
    assert read_checkpoint(folder / "pretrain" / "latest.pt")["step"] == 8


WRITERS: dict[str, Callable[[Path], Any]] = {
    "tokenizer.json": lambda folder: train_bpe([], 261).save(folder / "tokenizer.json"),
    "meta.json": lambda folder: write_meta(folder, {"name": "x" * 4096}),
    "doctor.json": lambda folder: write_result(folder / "doctor.json", "x" * 4096),
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
    assert re.fullmatch(rf"disk full: \d+\.\d MB are free now at {tmp_path}\S* for {name}", said), said
    assert not leftovers(tmp_path) and not (tmp_path / "out").exists()


def test_token_files_whose_disk_is_full_again_and_again_end_as_if_it_never_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="niels_gpt")
    cfg, straight = synthetic(tmp_path / "full", size=2000), synthetic(tmp_path / "straight", size=2000)
    opened(straight)
    largest = max(path.stat().st_size for path in (tmp_path / "straight").rglob("train.ids"))
    rooms = [largest // 3, largest // 2, largest - 1]
    with mock.patch.multiple(token_build, BATCH=3000, BUFFER=1500):
        for room in rooms:
            with allowed(room), pytest.raises(OSError) as caught:
                opened(cfg)
            said = str(disk.make_disk_error(caught.value))
            assert re.search(r"^disk full: .*/\.documents-\S+\.part for unsorted-train\.ids$", said), said
        assert len(leftovers(tmp_path)) == 1
        opened(cfg)
    assert sum("going on where an earlier build ended" in message for message in caplog.messages) == len(rooms)
    assert hashes(Path(cfg.cache_dir)) == hashes(Path(straight.cache_dir)) and not leftovers(tmp_path)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach and write to."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user whom modes concern, which root ignores. This user may be unable to read Python's own files."""
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("what", ["run", "run/pretrain", "cache"])
def test_a_folder_that_cannot_be_written_to_is_found_out_before_any_step(
    plan: Plan, folder: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """F28: by a real write."""
    for name in ("run", "run/pretrain", "cache"):
        (folder / name).mkdir()
        (folder / name).chmod(0o555 if name == what else 0o777)
    loaded = plan(*TRAIN, f"dir={folder}/run", f"data.cache_dir={folder}/cache")
    step = mock.patch("train.loop.steps.optimizer_step", side_effect=AssertionError)
    with as_nobody(), step, pytest.raises(SystemExit, match="8"), exit_on_error():
        carry_out(loaded)
    assert re.search(rf"error: .*{folder}/{what}/.*Permission denied", capsys.readouterr().err)


def test_a_complete_cache_may_be_read_only(plan: Plan, folder: Path) -> None:
    loaded = plan(*TRAIN, "train.total_steps=1", f"dir={folder}/run", f"data.cache_dir={folder}/cache")
    for _ in range(2):  # so that all modules are imported that a warm start needs
        carry_out(loaded)
        shutil.rmtree(folder / "run")
    for path in (folder / "cache", *(folder / "cache").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with as_nobody():
        carry_out(loaded)


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
