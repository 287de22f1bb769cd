"""The weights of a run are its best, those of a step, a mean of the last ones, or the average of train.ema."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Plan, Run, same
from torch import Tensor

from niels_gpt import load_session
from niels_gpt.errors import CheckpointError
from niels_gpt.weights.checkpoint import read_checkpoint
from niels_gpt.weights.paths import step_path
from train.run.resume import choose_tokenizer

KEPT = ("train.total_steps=6", "train.ckpt_every=1", "train.eval_every=6", "train.keep_last=5", "train.ema=0.9")


def weights_of(path: Path, **choice: Any) -> dict[str, Tensor]:
    return dict(load_session(path, **choice).model.state_dict())


def test_the_chosen_weights_are_loaded(run_folder: Run) -> None:
    run = run_folder(*KEPT)
    phase = run / "pretrain"
    saved = {step: read_checkpoint(step_path(phase, step)) for step in range(2, 7)}
    weights = {step: content["model_state"] for step, content in saved.items()}
    averages = {step: content["optimizer_state"]["parts"][-1]["state"] for step, content in saved.items()}

    def mean(*steps: int, ema: bool = False) -> dict[str, Tensor]:
        parts = [[e["ema"] for e in averages[n].values()] if ema else [*weights[n].values()] for n in steps]
        return {
            name: torch.stack(same_weight).mean(0)
            for name, same_weight in zip(weights[2], zip(*parts, strict=True), strict=True)
        }

    for path in (run, phase):
        assert same(weights_of(path), weights[6]), "the best"
        assert same(weights_of(path, step=4), weights[4])
        torch.testing.assert_close(weights_of(path, average=5), mean(2, 3, 4, 5, 6))
        torch.testing.assert_close(weights_of(path, average=2, step=4), mean(3, 4))
        assert same(weights_of(path, ema=True), mean(6, ema=True))
        assert same(weights_of(path, ema=True, step=3), mean(3, ema=True))
        torch.testing.assert_close(weights_of(path, ema=True, average=2), mean(5, 6, ema=True))
    assert not same(mean(6, ema=True), weights[6])
    assert same(weights_of(step_path(phase, 3), ema=True), mean(3, ema=True))
    (phase / "best.pt").unlink()
    step_path(phase, 2).rename(phase / "best.pt")  # it may be older than the kept steps
    assert same(weights_of(run, step=2), weights[2])


@pytest.mark.parametrize(
    ("within", "choice", "said", "hint"),
    [
        ("", {"average": 3}, "/sft has 2 of the 3 checkpoints to average", "train.keep_last=3,"),
        ("", {"average": 2, "step": 2}, "/sft has 1 of the 2 checkpoints to average", "train.keep_last=2,"),
        ("pretrain", {"step": 3}, "/pretrain has no step 3; nearest: 2, 4", "niels_gpt checkpoints "),
        ("", {"ema": True}, "/sft/step_0000004.pt has no average of the weights", "train.ema=0.999"),
        ("sft/best.pt", {"step": 4}, "/sft/best.pt is a single checkpoint", "name /"),
    ],
)
def test_weights_that_were_not_kept_are_refused_with_the_setting_that_keeps_them(
    finished_run: Path, within: str, choice: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_session(finished_run / within, **choice)
    assert said in str(caught.value) and hint in caught.value.hint


def test_a_phase_without_its_best_weights_does_not_become_the_phase_before(copied_run: Path) -> None:
    (copied_run / "sft" / "best.pt").unlink()
    for path in (copied_run, copied_run / "sft"):
        with pytest.raises(CheckpointError) as caught:
            load_session(path)
        others = "latest.pt, step_0000004.pt, step_0000002.pt"
        assert str(caught.value) == f"{copied_run / 'sft'} has no best.pt; there are {others}"
    with pytest.raises(CheckpointError, match="/sft has no step 3; nearest: 2, 4"):
        load_session(copied_run, step=3)
    for path in (copied_run / "sft").glob("*.pt"):
        path.unlink()
    assert not load_session(copied_run).chats, "a pipeline whose SFT has saved nothing yet"


AT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "runs": (lambda at: [shutil.copytree(at, at.with_name("runs") / name) for name in "ab"], "a folder of runs: "),
    "nosuch": (lambda at: None, "does not exist"),
    "empty": (lambda at: at.with_name("empty").mkdir(), "has no checkpoints"),
    "one.txt": (lambda at: at.with_name("one.txt").write_text("one"), "is not a checkpoint"),
    "gguf": (lambda at: write(at.with_name("gguf") / "a.gguf"), "has a GGUF file, which cannot be read back"),
    "part": (lambda at: write(at.with_name("part") / "model.safetensors"), "has model.safetensors, but no config"),
}


def write(path: Path) -> None:
    path.parent.mkdir()
    path.touch()


@pytest.mark.parametrize("name", AT)
def test_a_path_without_weights_is_refused_with_what_is_there(copied_run: Path, plan: Plan, name: str) -> None:
    make, said = AT[name]
    make(copied_run)
    path = copied_run.with_name(name)
    for read in (load_session, lambda path: choose_tokenizer(*plan(f"init_from={path}", name="new"))):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path} ") and said in str(caught.value)
        assert caught.value.hint.startswith(
            ("name ", "give a run folder, a phase's folder, a checkpoint or a Hug")
        )


FORGED: list[Callable[[dict[str, Any]], Any]] = [
    lambda saved: saved["optimizer_state"].update(parts="no parts"),
    lambda saved: saved["optimizer_state"].update(parts=[]),
    lambda saved: saved["optimizer_state"]["parts"][-1]["state"].pop(0),
    lambda saved: saved["optimizer_state"]["parts"][-1]["state"][0].update(ema=torch.zeros(3)),
    lambda saved: saved["optimizer_state"]["parts"][-1]["state"][0].update(ema="x"),
]


def test_a_forged_average_and_weights_of_another_model_are_refused_by_name(run_folder: Run) -> None:
    phase = run_folder(*KEPT) / "pretrain"
    for forge in FORGED:
        saved = read_checkpoint(phase / "best.pt")
        forge(saved)
        torch.save(saved, phase / "step_0000009.pt")
        with pytest.raises(CheckpointError, match=r"/step_0000009\.pt(:| has no average)"):
            load_session(phase, ema=True)
    other = run_folder("model.C=64", "train.total_steps=1", name="other") / "pretrain"
    shutil.copy(other / "best.pt", phase / "step_0000005.pt")
    with pytest.raises(
        CheckpointError, match=r"/step_0000005\.pt: .* embedding\.weight is \d+ x 64, not \d+ x 32"
    ):
        load_session(phase, average=3)
