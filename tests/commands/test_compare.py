"""Any runs can be compared afterwards as a sweep's are, and nothing is ever written over."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import processes
from support.made_runs import made_job, made_run

from train.report.rows import read_runs

HOSTILE = "\x1b]0;owned\a\x1b[2J[link=evil]<b>\u202e"


def test_runs_are_compared_into_new_folders_whatever_their_records_say(tmp_path: Path) -> None:
    others: dict[str, Any] = {"command": HOSTILE, "overrides": (HOSTILE,)}
    made_run(tmp_path / "runs" / "a", (4.0, 3.0), base_lr=1e-3)
    made_run(tmp_path / "runs" / "b", (4.0, 2.5), base_lr=3e-3, job=others)
    made_job(tmp_path / "runs" / "c", "failed", reason=f"out of memory{HOSTILE}", **others)
    for folder in ("compare", "compare-2"):
        done = processes.cli("runs/a", "runs/b", "runs/c", "--budget-gb", "2", cwd=tmp_path, script="compare")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"wrote {folder}/sweep.html" in done.stdout
        assert "c: failed, 1.5 minutes, out of memory" in done.stdout and "[link=evil]<b>" in done.stdout
        assert not set("\x1b\a\u202e") & set(done.stdout), "a terminal would obey them"
        report = json.loads((tmp_path / folder / "sweep.json").read_text())
        assert report["differing_settings"] == {"train.base_lr": [1e-3, 3e-3, None]}
        assert [choice["job"] for choice in report["best"]] == ["b", "a"]
        assert report["best"][1]["title"] == "Fastest within 2 GiB"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/x", "runs"], "error: there is no folder runs/x\nerror: runs holds no run\nhint: "),
        (["file"], "error: file holds no run\nhint: name run folders"),
        (["a", "--out", "a"], "error: a already exists\nhint: choose a new name in an existing folder"),
        (["a", "--budget-gb", "nan"], "--budget-gb must be above 0"),
        (["--out", "b"], "--out and --budget-gb go with run folders"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").touch()
    made_run(tmp_path / "a")
    before = sorted(tmp_path.rglob("*"))
    done = processes.cli(*arguments, cwd=tmp_path, script="compare")
    assert done.returncode == 2
    assert said in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_without_folders_the_runs_in_runs_are_listed_those_of_sweeps_too(tmp_path: Path) -> None:
    none = processes.cli(cwd=tmp_path, script="compare")
    assert (none.returncode, none.stdout) == (2, "")
    assert none.stderr == f"error: there are no runs in {tmp_path}/runs\nhint: niels_gpt train makes one\n"
    made_run(tmp_path / "runs" / HOSTILE.replace("/", ""), (4.0, 3.0))
    made_run(tmp_path / "runs" / "sweep" / "1", (4.0, 5.0))
    made_job(tmp_path / "runs" / "sweep" / "2", "failed")
    (tmp_path / "runs" / "up").symlink_to("..")
    shown = processes.cli(cwd=tmp_path, script="compare")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert (shown.returncode, shown.stderr) == (0, "") and not set("\x1b\a\u202e") & set(shown.stdout)
    assert lines[0] == ["run", "phase", "steps", "bits", "per", "byte", "MB", "state"]
    assert lines[2] == ["runs/sweep/1", "pretrain", "2", "2.000", "0.0", "finished"]
    assert lines[3] == ["runs/sweep/2", "0.0", "failed"] and len(lines) == 4
    listed = json.loads(processes.cli("--json", cwd=tmp_path, script="compare").stdout)
    assert [(run["steps"], run["bits_per_byte"], run["state"]) for run in listed] == [
        ({"pretrain": 2}, 1.5, "finished"),
        ({"pretrain": 2}, 2.0, "finished"),
        ({}, None, "failed"),
    ]


def test_a_sweeps_folder_stands_for_its_jobs_each_once(tmp_path: Path) -> None:
    for name in ("x", "y"):
        made_run(tmp_path / "sweep" / name)
    made_run(tmp_path / "other" / "x")
    rows = read_runs([tmp_path / "sweep" / "y", tmp_path / "sweep", tmp_path / "other" / "x"])
    assert [row.name for row in rows] == ["y", str(tmp_path / "sweep" / "x"), str(tmp_path / "other" / "x")]
