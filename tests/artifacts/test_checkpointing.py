"""Promise 7: a checkpoint visible under its name is complete, and loading one executes nothing."""

import os
from pathlib import Path

import pytest
import torch
from conftest import same

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError
from niels_gpt.model.gpt import GPT
from niels_gpt.weights.checkpoint import load_model, read_checkpoint
from niels_gpt.weights.paths import step_files, step_path
from train.artifacts.checkpointing import TrainState, save_checkpoint, save_step
from train.config.schema import TrainCfgSchema
from train.loop.optim import make_optimizer
from train.run.resume import find_newest

CFG = ModelCfg(V=256, T=8, C=16, L=1, H=2, d_ff=32, tie_embeddings=True)


def state(step: int) -> TrainState:
    model = GPT(CFG)
    return TrainState(model, make_optimizer(model, TrainCfgSchema()), step)


def test_the_last_few_are_kept_besides_best_and_latest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save_step(tmp_path, state(step), {}, best=step == 2, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt", "latest.pt", "step_0000004.pt", "step_0000005.pt",
    ]  # fmt: skip
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 2
    assert read_checkpoint(tmp_path / "latest.pt")["step"] == 5


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_latest_stands_in_for_the_newest_step_where_it_is_a_file_of_its_own(tmp_path: Path) -> None:
    for step in (1, 2):
        save_step(tmp_path, state(step), {}, best=False, keep_last=5)
    content = (tmp_path / "latest.pt").read_bytes()
    (tmp_path / "latest.pt").unlink()
    (tmp_path / "latest.pt").write_bytes(content)
    damage(step_path(tmp_path, 2), len(content) // 2)
    found = find_newest(tmp_path)
    assert found and found.saved["step"] == 2
    for path in step_files(tmp_path):
        path.unlink()
    assert find_newest(tmp_path) is not None, "never silently from scratch"


def test_a_damaged_later_step_does_not_push_a_good_one_out(tmp_path: Path) -> None:
    for step in (1, 3):
        save_step(tmp_path, state(step), {}, best=False, keep_last=2)
    damage(step_path(tmp_path, 3), 3000)
    assert find_newest(tmp_path)
    save_step(tmp_path, state(2), {}, best=False, keep_last=1)
    assert step_files(tmp_path) == [step_path(tmp_path, 2)]


def test_a_save_never_writes_into_what_a_killed_process_had_linked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pt", state(3), {})
    os.link(tmp_path / "best.pt", tmp_path / ".step_0000003.pt.part")
    before = (tmp_path / "best.pt").read_bytes()
    save_step(tmp_path, state(3), {}, best=False, keep_last=2)
    assert (tmp_path / "best.pt").read_bytes() == before


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt is not a niels_gpt checkpoint"):
        read_checkpoint(tmp_path / "other.pt")


def test_an_older_checkpoint_without_a_newer_setting_of_the_model_has_its_default(tmp_path: Path) -> None:
    """A tied head among them."""
    tied = state(3)
    save_checkpoint(tmp_path / "a.pt", tied, {})
    saved = torch.load(tmp_path / "a.pt")
    for key in ("tie_embeddings", "rope_theta", "dropout"):
        del saved["model_cfg"][key]
    torch.save(saved, tmp_path / "a.pt")
    loaded, _ = load_model(tmp_path / "a.pt")
    assert same(loaded.state_dict(), tied.model.state_dict()) and loaded.cfg == CFG


def test_steps_are_numbers_not_words(tmp_path: Path) -> None:
    for step in (9_999_999, 10_000_000, 5):
        step_path(tmp_path, step).touch()
    (tmp_path / "step_mine.pt").touch()
    assert step_files(tmp_path) == [step_path(tmp_path, step) for step in (10_000_000, 9_999_999, 5)]
