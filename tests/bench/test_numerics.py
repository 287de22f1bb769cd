"""The comparison of a run's precisions is exact if nothing differs, and shows the gradient that fp16 loses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Run
from hardware.test_batch_search import fake
from support import processes

from niels_gpt.errors import CheckpointError
from train.bench.numerics import compare_precisions, judge_precisions

NAMES = ["fp32", "fp16", "fp16_scaled", "bf16"]
ON_THE_CPU = pytest.mark.skipif(torch.backends.mps.is_available(), reason="a Mac with Metal emulates nothing")


@ON_THE_CPU
def test_every_precision_is_compared_and_the_emulation_is_named(finished_run: Path, tmp_path: Path) -> None:
    done = processes.cli(str(finished_run), "--json", "--out", "out.json", cwd=tmp_path, script="numerics")
    assert done.returncode == 0, done.stderr
    assert 'emulated with torch.autocast("cpu")' in done.stderr
    assert "sft/best.pt" in done.stderr, "the run's last phase"
    written = json.loads((tmp_path / "out.json").read_text())
    assert json.loads(done.stdout) == written, "nothing else is on stdout"
    assert [row["name"] for row in written["rows"]] == NAMES
    for row, verdict in zip(written["rows"], written["verdicts"], strict=True):
        assert verdict.startswith(f"{row['name']}: ") and f"\n{verdict}\n" in done.stderr
    assert written["sequences"] == 8 and written["tokens"] == 8 * 64 > written["targets"] > 0


@ON_THE_CPU
def test_fp32_equals_itself_exactly_dropout_or_not(run_folder: Run) -> None:
    fp32, *others = compare_precisions(run_folder("model.dropout=0.3")).rows
    assert fp32.error == 0
    assert all(0 < row.error < 0.1 for row in others)


@pytest.mark.slow
@ON_THE_CPU
def test_with_many_tokens_the_scale_keeps_what_plain_fp16_loses(run_folder: Run) -> None:
    own = ["model.L=1", "train.B=16", "train.accum_steps=1", "train.total_steps=120", "train.base_lr=0.01"]
    folder = run_folder(*own, "train.eval_every=120", "train.ckpt_every=120")  # gradients shrink as it learns
    result = compare_precisions(folder, 1024)
    _, plain, scaled, bf16 = result.rows
    error = {row.name: row.error for row in result.rows}
    assert error["fp16_scaled"] < error["fp16"]
    assert (plain.scale, scaled.scale, bf16.scale) == (1, 65536, 1)
    assert error["fp16_scaled"] < 0.005 and error["fp16"] > 0.012
    _, lost, kept, _ = result.verdicts
    assert lost.endswith("is lost at 65536 targets; use precision=bf16 or precision=fp16_scaled"), lost
    assert kept.startswith("fp16_scaled: keeps the gradient")


def test_numbers_that_are_not_finite_are_an_overflow_never_a_success(finished_run: Path) -> None:
    result = compare_precisions(finished_run, 2)
    bad = [row if row.name == "fp32" else replace(row, loss=float("nan")) for row in result.rows]
    _, *verdicts = judge_precisions(bad, result.targets)
    assert all("overflows" in words and "use precision=off" in words for words in verdicts)


def test_a_folder_or_a_checkpoint_may_be_named_too(finished_run: Path) -> None:
    assert compare_precisions(finished_run / "pretrain", 1).checkpoint == str(
        finished_run / "pretrain" / "best.pt"
    )
    latest = compare_precisions(finished_run / "pretrain" / "latest.pt", 1)
    assert latest.step == 4 and latest.sequences == 1 and latest.targets == 64


@ON_THE_CPU
def test_a_run_whose_B_was_found_is_compared_on_as_many_sequences_as_its_steps_have(run_folder: Run) -> None:
    tiny = ["model.C=16", "model.L=1", "train.total_steps=2"]
    with fake({1: 100.0, 2: 50.0}):
        found = compare_precisions(run_folder(*tiny, "batch=auto", "global_B=2", name="found"))
    said = compare_precisions(run_folder(*tiny, "train.B=1", "train.accum_steps=2", name="said"))
    assert (found.sequences, found.targets) == (said.sequences, said.targets) == (2, 2 * 64)
    assert found.rows[0].loss == pytest.approx(said.rows[0].loss), "the very sequences"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["empty"], 4, "error: empty has no checkpoints"),
        (["stray/pretrain/best.pt"], 4, "stray/pretrain/best.pt cannot be read (File is not a zip file)"),
        (["empty", "--out", "taken.json"], 2, "error: taken.json already exists"),
        (["empty", "--sequences", "0"], 2, "error: argument --sequences: must be at least 1, got 0"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken.json").write_text("mine")
    (tmp_path / "stray" / "pretrain").mkdir(parents=True)
    (tmp_path / "stray" / "pretrain" / "best.pt").write_text("no checkpoint")
    done = processes.cli(*arguments, cwd=tmp_path, script="numerics")
    assert done.returncode == code and said in done.stderr
    assert (tmp_path / "taken.json").read_text() == "mine"


def test_settings_that_are_missing_or_of_another_version_or_model_are_refused(copied_run: Path) -> None:
    path = copied_run / "result.json"
    result = json.loads(path.read_text())
    settings = result["phases"][1]["settings"]

    def refuse(settings: object, said: str) -> None:
        result["phases"][1]["settings"] = settings
        path.write_text(json.dumps(result))
        with pytest.raises(CheckpointError, match=said):
            compare_precisions(copied_run)

    different = r"best\.pt and .*/result\.json have different models:\nmodel\.L=2, not 3$"
    refuse(settings | {"model": settings["model"] | {"L": 3}}, different)
    extra = settings | {"train": settings["train"] | {"color": "blue"}}
    refuse(extra, r"settings of sft cannot be used \(train.color: Extra")
    refuse(None, "result.json has no settings of a phase sft")
