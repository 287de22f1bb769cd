"""Files from others that mean harm: nothing in them is run, nothing is written beside the run folder."""

import io
import json
import os
import pickle
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from faults.door import files_in, never_forever
from niels_gpt.config import SourceCfg
from niels_gpt.data.readers import local_files
from niels_gpt.errors import CheckpointError, ConfigError, DataError
from niels_gpt.tokenizer import load_tokenizer
from niels_gpt.weights.checkpoint import read_checkpoint
from train.config.legacy import format_experiment, plan_from_json
from train.report.rows import read_row

MODEL = {"V": 256, "T": 8, "C": 16, "L": 1, "H": 2, "d_ff": 32}


class _Runs:
    """What pickle would run on loading."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the user's own, into which nothing may come; the user's own is the present one."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "outside" / "precious").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_TOKEN", "canary-of-hostile")
    return tmp_path / "outside"


@pytest.fixture(autouse=True)
def _untouched(outside: Path) -> Any:
    """Whatever a test has fed, nothing was run, and nothing was written outside."""
    yield
    assert files_in(outside) == ["precious"] and (outside / "precious").read_text() == "mine"


def _plain_pickle(command: str) -> bytes:
    return pickle.dumps(_Runs(command))


def _saved_by_torch(command: str) -> bytes:
    content = io.BytesIO()
    torch.save({"model_state": _Runs(command)}, content)
    return content.getvalue()


def _old_form(command: str) -> bytes:
    content = io.BytesIO()
    torch.save({"step": _Runs(command)}, content, _use_new_zipfile_serialization=False)
    return content.getvalue()


def _bomb(_: str) -> bytes:
    """A few kilobytes that stand for a gigabyte."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/0", "w") as record:
            for _each in range(64):
                record.write(bytes(1 << 20))
    return content.getvalue()


@pytest.mark.parametrize("made", [_plain_pickle, _saved_by_torch, _old_form, _bomb])
def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(
    made: Callable[[str], bytes], outside: Path
) -> None:
    path = Path("step_0000001.pt")
    path.write_bytes(made(f"touch {shlex.quote(str(outside / 'ran'))}"))
    with pytest.raises(CheckpointError, match=r"step_0000001\.pt"):
        read_checkpoint(path)


def test_older_configs_name_no_paths_and_no_environment(outside: Path) -> None:
    for name in ("../../outside/precious", "/etc/passwd", "${oc.env:HF_TOKEN}", "a\nb", "a" * 65):
        Path("old.json").write_text(json.dumps({"model": MODEL, "sources": {name: 1}}))
        with pytest.raises(ConfigError, match="must be up to 64 letters"):
            plan_from_json(Path("old.json"))


def test_the_name_of_a_file_says_nothing_in_an_experiment(outside: Path) -> None:
    path = Path("a\nhydra: {mode: MULTIRUN}\n.json")
    path.write_text(json.dumps({"model": MODEL, "sources": {"wiki": 1}}))
    assert "\nhydra:" not in format_experiment(path)


NOT_FILES: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("../outside/nothing"),
}
READERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: list(local_files.read_documents(SourceCfg(kind="text", files=(str(path),)))),
    "jsonl": lambda path: list(local_files.read_dialogues(SourceCfg(kind="jsonl", files=(str(path),)))),
    "fingerprint": lambda path: local_files.fingerprint(SourceCfg(kind="text", files=(str(path),))),
    "tokenizer": load_tokenizer,
    "checkpoint": read_checkpoint,
    "older config": plan_from_json,
}


@pytest.mark.parametrize("kind", NOT_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_a_file_is_refused_by_name_without_waiting(kind: str, reader: str) -> None:
    NOT_FILES[kind](Path("input.x"))
    with pytest.raises((DataError, CheckpointError, ConfigError), match=r"input\.x"), never_forever():
        READERS[reader](Path("input.x"))


@pytest.mark.parametrize("kind", NOT_FILES)
def test_a_hostile_run_folder_is_reported_on(kind: str) -> None:
    for name in ("job.json", "result.json", "pretrain/metrics.jsonl", ".hydra/overrides.yaml"):
        path = Path(name.replace("/", "-"), name)
        path.parent.mkdir(parents=True)
        NOT_FILES[kind](path)
        with never_forever():
            assert read_row(Path(name.replace("/", "-"))).name == name.replace("/", "-")


@pytest.mark.parametrize(
    "text",
    [
        f"- train.seed=1\n- &a [{', '.join(['x'] * 9)}]\n" + "- &a [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n" * 30,
        "[" * 60000,
        "- !!python/object/apply:os.system ['touch ../outside/ran']",
        "- train.seed=1\n" * 10000,
    ],
    ids=["aliases", "deep", "python", "large"],
)
def test_the_overrides_of_a_hostile_run_folder_run_nothing_and_take_no_memory(text: str, outside: Path) -> None:
    (Path("run") / ".hydra").mkdir(parents=True)
    Path("run/.hydra/overrides.yaml").write_text(text)
    with never_forever():
        row = read_row(Path("run"))
    assert row.status == "unreadable" or row.overrides == ("train.seed=1",)
