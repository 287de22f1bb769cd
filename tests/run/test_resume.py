"""A run that is resumed: nothing is forgotten, nothing is learned twice, and what cannot be read now is kept."""

import errno
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Run, final, metrics, same, stopped_after, stopped_at

from niels_gpt.errors import CheckpointError, Interrupted, OutOfMemory
from niels_gpt.weights.checkpoint import read_checkpoint
from train.loop.evaluate import evaluate
from train.loop.steps import optimizer_step

LONGER = ("train.total_steps=6", "train.eval_every=3", "train.ckpt_every=1", "train.keep_last=9")


def result(folder: Path) -> dict[str, Any]:
    (entry,) = json.loads((folder / "result.json").read_text())["phases"]
    return dict(entry)


def val_losses(folder: Path) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in metrics(folder / "pretrain") if event["event"] == "val"}


@pytest.mark.parametrize("number", [1, 2])
def test_an_evaluation_that_was_cut_off_is_repeated_even_if_its_event_was_written(
    run_folder: Run, number: int
) -> None:
    """Promise 2: whether a step was evaluated follows from its checkpoint alone."""
    straight = run_folder(*LONGER, name="straight")
    with stopped_at(evaluate, number), pytest.raises(Interrupted):
        run_folder(*LONGER)
    with mock.patch("train.loop.steps.save_step", side_effect=OSError), pytest.raises(OSError):
        run_folder(*LONGER)
    folder = run_folder(*LONGER)
    assert same(final(folder / "pretrain"), final(straight / "pretrain"))
    assert metrics(folder / "pretrain") == metrics(straight / "pretrain")
    assert result(folder)["best_val_loss"] == result(straight)["best_val_loss"] is not None
    best = (read_checkpoint(path / "pretrain" / "best.pt")["model_state"] for path in (folder, straight))
    assert same(*best)


def test_the_best_loss_is_measured_again_when_other_sequences_validate(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    still = (*LONGER, "train.base_lr=1e-9")  # so that the best is that of step 3, or as good
    straight = run_folder(*still, "train.eval_sequences=20", name="straight")
    with stopped_after(4), pytest.raises(Interrupted):
        run_folder(*still, "train.eval_sequences=1")
    assert result(straight)["best_val_loss"] > (before := val_losses(straight.parent / "run")[3])
    folder = run_folder(*still, "train.eval_sequences=20")
    assert result(folder)["best_val_loss"] == result(straight)["best_val_loss"] != before
    assert "the validation sequences have changed; the loss of best.pt (step 3) was " in caplog.text


def test_a_resumed_run_draws_on_from_the_last_sequence_whatever_the_split(run_folder: Run) -> None:
    """Promise 2: another B x accum_steps neither repeats nor skips a sequence, and tokens only grow."""
    drawn: list[int] = []

    def record_step(state: Any, cfg: Any, source: Any, *rest: Any) -> Any:
        spy = mock.Mock(wraps=source)
        outcome = optimizer_step(state, cfg, spy, *rest)
        for call in spy.draw.call_args_list:
            drawn.extend(range(call.args[0], sum(call.args)))
        return outcome

    with mock.patch("train.loop.steps.optimizer_step", record_step):
        for B, accum_steps, total_steps in ((8, 2, 2), (2, 1, 5), (3, 4, 6)):
            split = f"train.B={B}", f"train.accum_steps={accum_steps}"
            folder = run_folder(*split, f"train.total_steps={total_steps}")
    assert drawn == list(range(2 * 16 + 3 * 2 + 12))
    tokens = [event["tokens"] for event in metrics(folder / "pretrain") if event["event"] == "train"]
    assert tokens == [64 * n for n in (16, 32, 34, 36, 38, 50)]
    assert result(folder)["tokens"] == 64 * 50


@pytest.mark.parametrize(
    ("reader", "trouble"),
    [
        ("zipfile.ZipFile.testzip", MemoryError()),
        ("train.run.resume.load_optimizer_state", RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        ("zipfile.ZipFile", PermissionError(errno.EACCES, "Permission denied")),
    ],
)
def test_a_checkpoint_that_cannot_be_read_now_does_not_count_as_damaged(
    run_folder: Run, tmp_path: Path, reader: str, trouble: Exception
) -> None:
    with stopped_after(4), pytest.raises(Interrupted):
        run_folder(*LONGER)
    phase = tmp_path / "run" / "pretrain"
    before = {path: path.read_bytes() for path in phase.glob("*.pt*")}
    with mock.patch(reader, side_effect=trouble), pytest.raises((OutOfMemory, OSError)):
        run_folder(*LONGER)
    assert {path: path.read_bytes() for path in phase.glob("*.pt*")} == before
    assert final(run_folder(*LONGER) / "pretrain")["step"] == 6


@pytest.mark.parametrize("setting", ["init_from", "resume"])
def test_a_run_that_has_begun_does_without_the_checkpoint_it_began_from(
    run_folder: Run, copied_run: Path, caplog: pytest.LogCaptureFixture, setting: str
) -> None:
    caplog.set_level("INFO", logger="niels_gpt")
    first = copied_run / "pretrain"
    begun = (f"{setting}={first / 'best.pt'}", "train.ckpt_every=1", "train.total_steps=6")
    with stopped_after(1), pytest.raises(Interrupted):
        run_folder(*begun, name="begun")
    for path in first.glob("*.pt"):
        path.unlink()
    folder = run_folder(*begun, name="begun")
    assert final(folder / "pretrain")["step"] == 6
    assert f"{first / 'best.pt'}: there is no such checkpoint" in caplog.text
    assert "pretrain resumes from its own checkpoint" in caplog.text
    run_folder(*begun, name="begun")
    assert "pretrain: complete at step 6, nothing to do" in caplog.messages
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        run_folder(*begun, name="another")


def test_a_best_checkpoint_damaged_after_the_last_evaluation_is_found_again(
    run_folder: Run, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_folder(*LONGER)
    (folder / "result.json").unlink()
    best = folder / "pretrain" / "best.pt"
    best.unlink()
    best.write_bytes(b"damaged")
    run_folder(*LONGER)
    assert "best.pt cannot be read (File is not a zip file); replaced by step 6 until the next eval" in caplog.text
    assert result(folder)["best_val_loss"] == val_losses(folder)[6]
    assert read_checkpoint(best)["step"] == 6


def test_a_run_does_not_go_on_with_other_targets(run_folder: Run) -> None:
    sft = ("phase=sft", "model.T=64", "train.total_steps=2")
    begun = final(run_folder(*sft) / "sft")
    with pytest.raises(CheckpointError, match="learn"):
        run_folder(*sft, "data.learn=all", "train.total_steps=4")
    other = final(run_folder(*sft, "data.learn=all", name="all") / "sft")
    assert not same(begun["model_state"], other["model_state"]), "the user's words are targets"


@pytest.mark.parametrize(("phase", "default", "other"), [("pretrain", False, True), ("sft", True, False)])
def test_a_run_does_not_go_on_with_attention_to_more_or_less(
    run_folder: Run, phase: str, default: bool, other: bool
) -> None:
    own = {"experiment": f"smoke_{phase}"}
    with stopped_after(2), pytest.raises(Interrupted):
        run_folder(**own)
    with pytest.raises(
        CheckpointError, match=f"different data\nsynthetic: isolate {str(default).lower()} -> {str(other).lower()}"
    ) as caught:
        run_folder(f"data.isolate={other}", **own)
    assert caught.value.hint.startswith("restore the original, or start a new run from its weights: init_from=")
    stated = final(run_folder(f"data.isolate={default}", **own) / phase)
    assert stated["step"] == 4
    assert not same(stated, final(run_folder(f"data.isolate={other}", name="other", **own) / phase))
    with pytest.raises(CheckpointError, match=f"was completed with data.isolate={str(default).lower()}, not"):
        run_folder(f"data.isolate={other}", **own)


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_checkpoint_without_its_averages_is_refused(run_folder: Run, optim: str) -> None:
    folder = run_folder(f"optim={optim}", "train.total_steps=2", "train.keep_last=1")
    (path,) = folder.glob("pretrain/step_*.pt")
    saved = read_checkpoint(path)
    for part in saved["optimizer_state"].get("parts", [saved["optimizer_state"]]):
        part["state"] = {}
    torch.save(saved, path)
    said = "its optimizer_state does not fit its model .*a weight has averages of shapes {}, not"
    with pytest.raises(CheckpointError, match=said):
        run_folder(f"optim={optim}")


def test_a_result_keeps_the_history_of_settings_that_changed(run_folder: Run) -> None:
    first, second = ("train.base_lr=0.002", "train.seed=7"), ("train.base_lr=0.003", "train.log_every=2")
    run_folder("train.total_steps=1")
    with stopped_after(2), pytest.raises(Interrupted):
        run_folder(*first, "train.total_steps=4", "model.dropout=0.1")
    folder = run_folder(*second, "train.total_steps=4", "train.seed=7", "model.dropout=0.1")
    changes = [tuple(change.values()) for change in result(folder)["changes"]]
    assert set(changes) == {
        (1, "model.dropout", 0.0, 0.1),
        (1, "train.seed", 1337, 7),
        (1, "train.base_lr", 0.014, 0.002),
        (1, "train.total_steps", 1, 4),
        (3, "train.base_lr", 0.002, 0.003),
    }


def make_older(folder: Path, *unrecorded: str) -> None:
    """Rewrite the checkpoints and the result of a run as those of a version without these records."""
    for path in folder.glob("*/*.pt"):
        saved = read_checkpoint(path)
        for key in unrecorded:
            saved["train_cfg"].pop(key, None)
        if "split" in unrecorded:
            saved["train_cfg"]["data"] = "0123456789abcdef"
        path.unlink()  # not the second name too
        torch.save(saved, path)
    whole = json.loads((folder / "result.json").read_text())
    for entry in whole["phases"]:
        del entry["settings"]["data"]["val_files"]
    (folder / "result.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("unrecorded", "does"),
    [(["split", "dialogues"], "splits training and validation"), (["dialogues"], "encodes dialogues")],
)
def test_a_run_from_before_the_present_split_or_encoding_is_refused_with_both_ways_out_unless_it_is_complete(
    run_folder: Run, copied_run: Path, caplog: pytest.LogCaptureFixture, unrecorded: list[str], does: str
) -> None:
    pretrained = read_checkpoint(copied_run / "pretrain" / "best.pt")["train_cfg"]
    assert "split" in pretrained and "dialogues" not in pretrained, "pretraining has not changed"
    make_older(copied_run, *unrecorded)
    caplog.set_level("INFO", logger="niels_gpt")
    run_folder(experiment="smoke_pipeline")
    assert {"pretrain: complete at step 4, nothing to do", "sft: complete at step 4, nothing to do"} <= {
        *caplog.messages
    }
    said = rf"/sft/\S+\.pt is of an older version; this one {does} otherwise$"
    with pytest.raises(CheckpointError, match=said) as caught:
        run_folder("sft.train.total_steps=8", experiment="smoke_pipeline")
    hint = r"finish the run with the version that began it, or start a new run .*: (init_from=\S+) name=\.\.\."
    found = re.fullmatch(hint, caught.value.hint)
    assert found
    folder = run_folder(found[1], "train.total_steps=2", experiment="smoke_sft", name="new")
    assert final(folder / "sft")["step"] == 2


def test_a_run_resumes_under_another_spelling_of_its_path(
    run_folder: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("\n\n".join(f"the number {n} is {n * n}" for n in range(300)))
    own = ("data=text", "model.V=300", "train.ckpt_every=1")
    with stopped_after(2), pytest.raises(Interrupted):
        run_folder("data.files=a.txt", *own)
    folder = run_folder(f"data.files={tmp_path}/a.txt", *own)
    straight = run_folder("data.files=a.txt", *own, name="straight")
    assert same(final(folder / "pretrain"), final(straight / "pretrain"))
