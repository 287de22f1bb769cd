"""Files from others that mean harm: nothing in them is run, none writes elsewhere or takes memory."""

import json
import os
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from support.processes import cli, limit_memory

from faults.door import never_forever
from faults.folders import TINY
from niels_gpt.config import SourceCfg
from niels_gpt.data.readers import local_files
from niels_gpt.errors import CheckpointError, ConfigError, DataError
from niels_gpt.tokenizer import load_tokenizer
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.paths import step_path
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


Saved = dict[str, Any]
Change = Callable[[Saved], Saved]
RUN = (*TINY, "train.total_steps=2", "train.ckpt_every=2", "train.eval_every=2")
ROOM = 512 << 20  # bytes
WIDE: Saved = {"V": 1 << 20, "C": 1 << 20, "L": 1024, "H": 1024, "d_ff": 1 << 24}


def asking(saved: Saved, **changes: Any) -> Saved:
    """Let the settings ask for another model than the weights are of."""
    return saved | {"model_cfg": saved["model_cfg"] | changes}


def repeating(saved: Saved) -> Saved:
    """Let the settings ask for a wide model, and weights of its shapes repeat one number."""
    state = {name: torch.zeros(1).expand([n << 16 for n in t.shape]) for name, t in saved["model_state"].items()}
    return asking(saved, V=256 << 16, C=16 << 16, d_ff=16 << 16) | {"model_state": state}


def unfolding(saved: Saved) -> Saved:
    """Let the optimizer have 2**64 numbers, of a few bytes, as the averages of its first weight."""
    average: Any = 0.5
    for _ in range(64):
        average = [average, average]
    return saved | {"optimizer_state": {"state": {0: {"exp_avg": average}}, "param_groups": []}}


ENORMOUS: list[tuple[Change, str]] = [
    (partial(asking, L=10**6), "model_cfg.L cannot be used"),
    (partial(asking, **WIDE), "fit its model_cfg: embedding.weight is 256 x 16, not"),
    (partial(asking, T=1 << 24), "model_cfg cannot be used (T=16777216 times"),
    (repeating, "its tensors are larger than the file"),
    (unfolding, "its tensors are larger than the file"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and RLIMIT_AS")
@pytest.mark.slow
def test_a_checkpoint_that_asks_for_too_much_memory_is_refused_before_any_is_taken(
    run_folder: Run, tmp_path: Path
) -> None:
    best = run_folder(*RUN) / "pretrain" / "best.pt"
    whole = read_checkpoint(best)
    for change, reason in ENORMOUS:
        torch.save(change(whole), best)
        done = cli(str(best), "--prompt", "a", cwd=tmp_path, script="sample", before=partial(limit_memory, ROOM))
        assert done.returncode == 4 and done.stderr.startswith(f"error: {best}: ") and "\nhint: " in done.stderr
        assert reason in done.stderr and "Traceback" not in done.stderr


def refusals(run_folder: Run, changes: Iterable[Change], *settings: str) -> Iterator[str]:
    """Train two steps; go on from their checkpoint with each of the changes, and yield why that is refused."""
    phase = run_folder(*RUN, *settings) / "pretrain"
    whole = (phase / "latest.pt").read_bytes()
    for change in changes:
        shutil.rmtree(phase)
        phase.mkdir()
        step_path(phase, 2).write_bytes(whole)
        torch.save(change(read_checkpoint(step_path(phase, 2))), step_path(phase, 2))
        with pytest.raises(CheckpointError, match=r"step_0000002\.pt") as caught:
            run_folder(*RUN, *settings, "train.total_steps=4")
        yield str(caught.value)


def test_a_run_does_not_go_on_from_other_content_and_names_the_part(run_folder: Run) -> None:
    wrong: dict[str, Saved] = {
        "its model_state does not fit its model_cfg": {"model_cfg": WIDE | {"T": 16, "L": 1}},
        "optimizer_state": {"optimizer_state": {"state": {}, "param_groups": []}},
        "step": {"step": "2"},
        "train_cfg": {"train_cfg": []},
        "model_cfg": {"model_cfg": {}},
    }

    def replace(new: Saved, saved: Saved) -> Saved:
        return saved | new

    changes = [partial(replace, new) for new in wrong.values()]
    for part, said in zip(wrong, refusals(run_folder, changes), strict=True):
        assert part in said.replace("step_0000002", "")


SPOILT: list[Callable[[torch.Tensor], Any]] = [
    lambda average: torch.zeros(3),
    lambda average: average.T,
    lambda average: torch.zeros(1).expand(average.shape),
    lambda average: average.to_sparse(),
    lambda average: "x",
]


@pytest.mark.parametrize(
    ("settings", "at", "name"),
    [
        (["optim=adamw"], (), "exp_avg"),
        (["optim=muon"], ("parts", 1), "momentum_buffer"),
        (["optim=muon", "train.ema=0.9"], ("parts", 2), "ema"),
    ],
)
def test_averages_that_are_not_as_their_weights_are_refused(
    settings: list[str], at: tuple[Any, ...], name: str, run_folder: Run
) -> None:
    """A fused kernel takes their size for granted, and would read and write beyond them."""

    def spoil(how: Callable[[torch.Tensor], Any], saved: Saved) -> Saved:
        kept = reduce(getitem, at, saved["optimizer_state"])["state"][0]
        kept[name] = how(kept[name])
        return saved

    for said in refusals(run_folder, [partial(spoil, how) for how in SPOILT], *settings):
        assert re.search("its optimizer_state does not fit its model|its tensors are larger than the file", said)
