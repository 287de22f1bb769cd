"""A phase that stops without improvement: at the same step when it is killed, and open to more patience."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import Run, carry_out, composing, final, metrics, same, smoke, stopped_after, stopped_at

from niels_gpt.errors import CheckpointError, Interrupted
from niels_gpt.weights.checkpoint import read_checkpoint
from train.artifacts.checkpointing import save_step
from train.config import load_plan
from train.loop.evaluate import evaluate

WORSE = (  # after step 2: the best of the steps 2, 4, 6 and 8, though not of all
    *("train.base_lr=1.0", "train.warmup_steps=0", "train.total_steps=12"),
    *("train.eval_every=2", "train.ckpt_every=3", "train.keep_last=9"),
)
PATIENT = (*WORSE, "train.patience=3")
SAID = "pretrain: stopped at step 8: no improvement in 3 evaluations since step 2"


def results(folder: Path) -> dict[str, dict[str, Any]]:
    entries = json.loads((folder / "result.json").read_text())["phases"]
    return {
        entry["phase"]: {key: entry[key] for key in entry if key not in ("seconds", "changes")}
        for entry in entries
    }


def require_same(folder: Path, straight: Path) -> None:
    assert same(final(folder / "pretrain"), final(straight / "pretrain"))
    assert metrics(folder / "pretrain") == metrics(straight / "pretrain")
    assert results(folder) == results(straight)
    best = (read_checkpoint(path / "pretrain" / "best.pt")["model_state"] for path in (folder, straight))
    assert same(*best)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """The run that nothing interrupts. The tests only read it."""
    with composing() as composed:
        words = smoke("smoke_pretrain", tmp_path_factory.mktemp("straight") / "run", cache_dir)
        return carry_out(load_plan(composed(*words, *PATIENT)))


def test_a_run_that_stops_says_so_and_is_complete(
    run_folder: Run, straight: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = results(straight)["pretrain"]
    assert (result["step"], result["evaluations_since_best"]) == (8, 3)
    assert read_checkpoint(straight / "pretrain" / "best.pt")["step"] == 2
    assert final(straight / "pretrain")["step"] == 8
    caplog.set_level("INFO", logger="niels_gpt")
    run_folder(*PATIENT)
    assert SAID in caplog.messages
    assert "  train more  the same command with train.patience=null" in caplog.messages
    for fewer in (3, 2):
        caplog.clear()
        run_folder(*WORSE, f"train.patience={fewer}")
        assert "pretrain: complete at step 8, nothing to do" in caplog.messages


@pytest.mark.slow
@pytest.mark.parametrize("save", [1, 2, 3, 4])
@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_is_killed_at_a_save_stops_at_the_same_step(
    run_folder: Run, straight: Path, save: int, late: bool
) -> None:
    """Promise 2: at each of its saves, before or after it."""
    saves = 0

    def die(*arguments: Any, **options: Any) -> None:
        nonlocal saves
        saves += 1
        if late or saves < save:
            save_step(*arguments, **options)
        if saves == save:
            raise KeyboardInterrupt

    with mock.patch("train.loop.steps.save_step", die), pytest.raises(KeyboardInterrupt):
        run_folder(*PATIENT)
    require_same(run_folder(*PATIENT), straight)


@pytest.mark.slow
def test_a_run_that_is_killed_between_best_and_its_step_stops_at_the_same_step(
    run_folder: Run, straight: Path
) -> None:
    with mock.patch("train.artifacts.checkpointing.link_checkpoint", side_effect=OSError), pytest.raises(OSError):
        run_folder(*PATIENT)
    require_same(run_folder(*PATIENT), straight)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 5, 7, 8])
def test_a_run_that_is_stopped_goes_on_to_the_same_step(run_folder: Run, straight: Path, steps: int) -> None:
    with stopped_after(steps), pytest.raises(Interrupted):
        run_folder(*PATIENT)
    require_same(run_folder(*PATIENT), straight)


@pytest.mark.slow
def test_a_cut_off_evaluation_does_not_count(run_folder: Run, straight: Path) -> None:
    with stopped_at(evaluate, 4), pytest.raises(Interrupted):
        run_folder(*PATIENT)
    require_same(run_folder(*PATIENT), straight)


def test_a_run_that_dies_before_its_result_takes_no_more_steps(run_folder: Run, straight: Path) -> None:
    with mock.patch("train.run.runner.write_results", side_effect=OSError), pytest.raises(OSError):
        run_folder(*PATIENT)
    with mock.patch("train.loop.steps.optimizer_step", side_effect=AssertionError):
        require_same(run_folder(*PATIENT), straight)


@pytest.mark.parametrize("patience", ["null", pytest.param("5", marks=pytest.mark.slow)])
def test_with_more_patience_the_same_command_goes_on_as_if_it_had_never_stopped(
    run_folder: Run, straight: Path, tmp_path: Path, patience: str
) -> None:
    more = (*WORSE, f"train.patience={patience}")
    shutil.copytree(straight, tmp_path / "stopped")
    unstopped, stopped = (run_folder(*more, name=name) for name in ("unstopped", "stopped"))
    assert results(unstopped)["pretrain"]["step"] == 12
    assert results(unstopped)["pretrain"]["evaluations_since_best"] is None
    require_same(stopped, unstopped)


def test_a_pipeline_goes_on_from_the_best_and_does_not_go_back(run_folder: Run) -> None:
    own = (*WORSE, "sft.train.total_steps=2", "sft.train.base_lr=0.01")
    folder = run_folder(*own, "train.patience=2", experiment="smoke_pipeline")
    assert [(result["step"], result["evaluations_since_best"]) for result in results(folder).values()] == [
        (6, 2),
        (2, None),
    ]
    assert final(folder / "sft")["step"] == 2
    assert "pretrain step 2 " in read_checkpoint(folder / "sft" / "best.pt")["train_cfg"]["init_from"]
    with pytest.raises(CheckpointError, match="has 6 of 12 steps, but sft has already started") as caught:
        run_folder(*own, "train.patience=4", experiment="smoke_pipeline")
    assert "the original total_steps and patience" in caught.value.hint


@pytest.mark.slow
def test_with_less_patience_a_run_stops_at_its_next_evaluation(run_folder: Run) -> None:
    with stopped_after(5), pytest.raises(Interrupted):
        run_folder(*PATIENT)
    assert results(run_folder(*WORSE, "train.patience=1"))["pretrain"]["step"] == 6


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_replaced_and_counted_from(run_folder: Run, tmp_path: Path) -> None:
    with stopped_after(7), pytest.raises(Interrupted):
        run_folder(*PATIENT)
    best = tmp_path / "run" / "pretrain" / "best.pt"
    best.unlink()
    best.write_bytes(b"damaged")
    assert results(run_folder(*PATIENT))["pretrain"]["step"] == 12, "not 8: step 8 is the best that is left"
    assert read_checkpoint(best)["step"] > 8


@pytest.mark.slow
def test_new_sequences_of_validation_do_not_restart_the_count(run_folder: Run) -> None:
    with stopped_after(7), pytest.raises(Interrupted):
        run_folder(*PATIENT)
    folder = run_folder(*PATIENT, "train.eval_sequences=7")
    assert (results(folder)["pretrain"]["step"], read_checkpoint(folder / "pretrain" / "best.pt")["step"]) == (
        8,
        2,
    )


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["init_from", "resume"])
def test_a_run_from_another_checkpoint_counts_its_own_evaluations(
    run_folder: Run, straight: Path, setting: str
) -> None:
    begun = f"{setting}={straight / 'pretrain' / 'latest.pt'}"
    folder = run_folder(*PATIENT, "train.patience=1", "train.total_steps=14", begun, name="another")
    vals = [event for event in metrics(folder / "pretrain") if event["event"] == "val"]
    lowest = min(vals, key=lambda event: event["loss"])
    assert len(vals) > 1
    assert vals[-1]["step"] == 14 or vals[-2] == lowest
