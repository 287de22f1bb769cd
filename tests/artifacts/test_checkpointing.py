"""Promise 7: a checkpoint visible under its name is complete, and loading one executes nothing."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import same

from niels_gpt.config import ModelCfg
from niels_gpt.errors import CheckpointError, DiskError, NonFiniteError
from niels_gpt.model.gpt import GPT
from niels_gpt.weights.checkpoint import CHECKPOINT_KEYS, load_model, read_checkpoint
from train.artifacts.checkpointing import TrainState, save_checkpoint, save_step
from train.artifacts.compatibility import LoadedCheckpoint
from train.artifacts.paths import step_files, step_path
from train.config.schema import TrainCfgSchema
from train.loop.optim import make_optimizer
from train.run.resume import find_newest, list_changes, load_state, load_weights

CFG = ModelCfg(V=256, T=8, C=16, L=1, H=2, d_ff=32, tie_embeddings=True)


def state(step: int = 0, seed: int = 0, cfg: ModelCfg = CFG) -> TrainState:
    torch.manual_seed(seed)
    model = GPT(cfg)
    made = TrainState(model, make_optimizer(model, TrainCfgSchema()), step, 1.5)
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    made.optimizer.step()
    return made


def test_resuming_takes_all_six_keys_and_a_warm_start_the_weights_alone(tmp_path: Path) -> None:
    first, second, third = state(7), state(0, seed=1), state(0, seed=1)
    save_checkpoint(tmp_path / "a.pt", first, {"B": 4})
    found = LoadedCheckpoint.load(tmp_path / "a.pt")
    assert found.saved.keys() == CHECKPOINT_KEYS.keys()
    load_state(second, found)
    assert (second.step, second.best_val_loss) == (7, 1.5)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert same(first.optimizer.state_dict(), second.optimizer.state_dict())
    before = third.optimizer.state_dict()
    third.best_val_loss = None
    load_weights(third, LoadedCheckpoint.load(tmp_path / "a.pt"))
    assert same(first.model.state_dict(), third.model.state_dict())
    assert same(before, third.optimizer.state_dict())
    assert (third.step, third.best_val_loss) == (0, None)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "a.pt", state(1), {})
    before = (tmp_path / "a.pt").read_bytes()

    def torn(content: object, file: object) -> None:
        file.write(b"half a check")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(DiskError, match="disk full"):
        save_checkpoint(tmp_path / "a.pt", state(2), {})
    assert (tmp_path / "a.pt").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    spoilt = state(3)
    with torch.no_grad():
        spoilt.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"norm.weight is not finite at step 3"):
        save_checkpoint(tmp_path / "a.pt", spoilt, {})
    assert not list(tmp_path.iterdir())


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


def test_a_flipped_bit_is_found_and_the_step_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_step(tmp_path, state(step), {}, best=False, keep_last=5)
    path = step_path(tmp_path, 2)
    damage(path, path.stat().st_size // 2)
    with caplog.at_level(logging.WARNING, logger="niels_gpt"):
        found = find_newest(tmp_path)
    assert found and found.saved["step"] == 1
    assert re.search(
        r"warning: .*step_0000002.pt is damaged \(bad CRC-32 of .*\); using step 1$", caplog.text, re.M
    )
    assert (tmp_path / "step_0000002.pt.damaged").exists()


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
    save_step(tmp_path, state(3, seed=1), {}, best=False, keep_last=2)
    assert (tmp_path / "best.pt").read_bytes() == before


def test_when_all_are_damaged_nothing_starts_from_scratch_silently(tmp_path: Path) -> None:
    save_step(tmp_path, state(1), {}, best=False, keep_last=5)
    path = step_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"step_0000001.pt cannot be read"):
        find_newest(tmp_path)
    assert find_newest(tmp_path / "empty") is None


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt is not a niels_gpt checkpoint"):
        read_checkpoint(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        read_checkpoint(tmp_path / "missing.pt")


def test_an_older_checkpoint_without_a_newer_setting_of_the_model_has_its_default(tmp_path: Path) -> None:
    saved = {
        "model_cfg": CFG.model_dump(exclude={"rope_theta", "dropout"}),
        "model_state": state(1).model.state_dict(),
    }
    found = LoadedCheckpoint(tmp_path / "a.pt", saved)
    load_weights(state(seed=1), found)
    other = state(cfg=CFG.model_copy(update={"rope_theta": 500.0}))
    with pytest.raises(CheckpointError, match=r"model.rope_theta=10000.0, not 500.0"):
        load_weights(other, found)


def test_a_checkpoint_from_before_the_newer_settings_resumes_with_a_tied_head(tmp_path: Path) -> None:
    tied, fresh = state(3), state(seed=1)
    save_checkpoint(tmp_path / "a.pt", tied, {"B": 8, "total_steps": 9})
    found = LoadedCheckpoint.load(tmp_path / "a.pt")
    load_state(fresh, found)
    assert fresh.step == 3
    changed = {"step": 3, "setting": "train.B", "before": 8, "after": 4}
    assert list(list_changes(found.saved, train=TrainCfgSchema(total_steps=9))) == [changed]
    saved = torch.load(tmp_path / "a.pt")
    del saved["model_cfg"]["tie_embeddings"]
    torch.save(saved, tmp_path / "a.pt")
    assert same(load_model(tmp_path / "a.pt")[0].state_dict(), tied.model.state_dict())


def test_steps_are_numbers_not_words(tmp_path: Path) -> None:
    for step in (9_999_999, 10_000_000, 5):
        step_path(tmp_path, step).touch()
    (tmp_path / "step_mine.pt").touch()
    assert step_files(tmp_path) == [step_path(tmp_path, step) for step in (10_000_000, 9_999_999, 5)]


def test_another_model_is_refused_with_a_line_per_difference(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", state(1), {})
    other = state(cfg=CFG.model_copy(update={"C": 32, "d_ff": 64, "dropout": 0.5}))
    with pytest.raises(CheckpointError) as caught:
        load_state(other, LoadedCheckpoint.load(tmp_path / "a.pt"))
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'a.pt'} and this run have different models:",
        "model.C=16, not 32",
        "model.d_ff=32, not 64",
    ]
