"""Files from others that mean harm: nothing in them is run, nothing is written beside the run folder."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from faults.door import never_forever
from niels_gpt.config import SourceCfg
from niels_gpt.data.readers import local_files
from niels_gpt.errors import CheckpointError, ConfigError, DataError
from niels_gpt.tokenizer import load_tokenizer
from niels_gpt.weights.checkpoint import read_checkpoint
from train.config.legacy import format_experiment, plan_from_json
from train.report.rows import read_row

OLD = {"model": {"V": 256, "T": 8, "C": 16, "L": 1, "H": 2, "d_ff": 32}, "sources": {"wiki": 1}}


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder beside the present one, into which nothing may come."""
    for name in ("outside", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "outside"
    assert os.listdir(tmp_path / "outside") == []


class _Runs:
    """What pickle would run on loading."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ../outside/ran",)


def _write_bomb(path: Path) -> None:
    """A few kilobytes that stand for a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/0", "w") as record:
            for _ in range(64):
                record.write(bytes(1 << 20))


WRITERS: dict[str, Callable[[Path], object]] = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(_Runs())),
    "saved by torch": lambda path: torch.save({"model_state": _Runs()}, path),
    "old form": lambda path: torch.save({"step": _Runs()}, path, _use_new_zipfile_serialization=False),
    "bomb": _write_bomb,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_checkpoint_that_would_run_something_is_refused_and_runs_nothing(kind: str) -> None:
    WRITERS[kind](Path("step_0000001.pt"))
    with pytest.raises(CheckpointError, match=r"step_0000001\.pt"):
        read_checkpoint(Path("step_0000001.pt"))


@pytest.mark.parametrize("name", ["../../outside/precious", "${oc.env:HF_TOKEN}", "a\nb", "a" * 65])
def test_older_configs_name_no_paths_and_no_environment(name: str) -> None:
    Path("old.json").write_text(json.dumps(OLD | {"sources": {name: 1}}))
    with pytest.raises(ConfigError, match="must be up to 64 letters"):
        plan_from_json(Path("old.json"))


def test_the_name_of_a_file_says_nothing_in_an_experiment() -> None:
    path = Path("a\nhydra: {mode: MULTIRUN}\n.json")
    path.write_text(json.dumps(OLD))
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
    for number, name in enumerate(("job.json", "result.json", "pretrain/metrics.jsonl", ".hydra/overrides.yaml")):
        path = Path(str(number), name)
        path.parent.mkdir(parents=True)
        NOT_FILES[kind](path)
        with never_forever():
            assert read_row(Path(str(number))).name == str(number)


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
def test_the_overrides_of_a_hostile_run_folder_run_nothing_and_take_no_memory(text: str) -> None:
    Path(".hydra").mkdir()
    Path(".hydra/overrides.yaml").write_text(text)
    with never_forever():
        row = read_row(Path.cwd())
    assert row.status == "unreadable" or row.overrides == ("train.seed=1",)
