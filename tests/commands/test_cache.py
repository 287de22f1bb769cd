"""niels_gpt cache shows what is in a cache folder, and removes what it was asked to remove, no more."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Run
from filelock import FileLock
from support.processes import cli

KEY = "0123456789abcdef"


@pytest.fixture
def folder(run_folder: Run, tmp_path: Path) -> Path:
    """A folder with two runs, each with caches of its own; one run has been deleted."""
    for name, size in (("kept", 150), ("gone", 160)):
        run = run_folder(
            "data.tokenizer=bpe", "model.V=300", f"data.size={size}", "train.total_steps=1",
            f"data.cache_dir={tmp_path}/cache", name=name,
        )  # fmt: skip
        (tmp_path / "runs").mkdir(exist_ok=True)
        if name == "kept":
            run.rename(tmp_path / "runs" / name)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "cache").glob("[dt]*") if path.suffix != ".sha256")


def test_what_no_run_refers_to_goes_and_the_rest_stays(folder: Path) -> None:
    listed = json.loads(cli("--json", cwd=folder, script="cache").stdout)
    assert len(listed) == 4 and sum("runs/kept" in entry["runs"] for entry in listed) == 2
    fresh = cli("--unused", "--yes", cwd=folder, script="cache")
    assert fresh.stdout == "nothing to remove with --older-than 1\n", "a run that is starting refers to none yet"
    unused = ["--unused", "--older-than", "0"]
    asked = cli(*unused, cwd=folder, script="cache")
    assert asked.returncode == 2 and "no terminal to ask" in asked.stderr and len(names(folder)) == 4
    lost = cli(*unused, "--runs", "lost", "--yes", cwd=folder, script="cache")
    assert lost.returncode == 2 and "error: there is no folder lost\n" in lost.stderr and len(names(folder)) == 4
    (folder / "runs" / "kept").rename(folder / "runs" / "moved")
    done = cli(*unused, "--yes", cwd=folder, script="cache")
    assert done.returncode == 0 and "removed 2 entries" in done.stdout
    assert [f"cache/{name}" for name in names(folder)] == [e["path"] for e in listed if e["runs"]]
    assert not list((folder / "cache").glob(".removed*"))


def test_what_was_used_lately_stays_when_old_ones_go(folder: Path) -> None:
    first, *others = (folder / "cache" / name for name in names(folder))
    for path in others:
        os.utime(path, (0, time.time() - 40 * 24 * 60 * 60))
    done = cli("--older-than", "30", "--yes", cwd=folder, script="cache")
    assert done.returncode == 0 and names(folder) == [first.name]
    assert "nothing to remove" in cli("--older-than", "30", "--yes", cwd=folder, script="cache").stdout


def test_a_run_marks_its_cache_and_its_tokenizer_as_used(run_folder: Run, tmp_path: Path) -> None:
    words = ["data.tokenizer=bpe", "model.V=300", f"data.cache_dir={tmp_path}/cache"]
    run_folder(*words, name="first")
    paths = [tmp_path / "cache" / name for name in names(tmp_path)]
    for path in paths:
        os.utime(path, (0, 0))
    run_folder(*words, name="second")
    assert len(paths) == 2 and all(path.stat().st_mtime > 0 for path in paths)


@pytest.mark.parametrize(
    "caches", [5, None, "x", {"a": 1}, [["a"], {"b": 1}, 2, "", "a\0b", f"/moved/documents-text-{KEY}"]]
)
def test_only_caches_are_removed_whatever_the_files_say(tmp_path: Path, caches: object) -> None:
    cache, phase, mine = tmp_path / "cache", tmp_path / "runs" / "\x1b[2J" / "pretrain", tmp_path / "mine"
    for folder in (cache / f"documents-text-{KEY}", cache / "documents", phase, mine):
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text('{"tokenizer_sha256": ["x"]}')
    (cache / f"documents-linked-{KEY}").symlink_to(mine)
    (cache / "tokenizer-mine.json").touch()
    (phase / "data.json").write_text(json.dumps({"caches": caches}))
    (tmp_path / "runs" / "loop").symlink_to("..")
    listed = cli(cwd=tmp_path, script="cache")
    assert (listed.returncode, listed.stderr) == (0, "") and "\x1b" not in listed.stdout
    assert cli("--older-than", "0", "--unused", "--yes", cwd=tmp_path, script="cache").returncode == 0
    kept = {"documents", f"documents-linked-{KEY}", "tokenizer-mine.json"}
    known = isinstance(caches, list)
    assert {path.name for path in cache.iterdir()} == kept | ({f"documents-text-{KEY}"} if known else set())
    assert (mine / "meta.json").exists()


def test_a_damaged_entry_is_listed_and_a_missing_folder_is_named(folder: Path) -> None:
    next((folder / "cache").glob("documents-*/meta.json")).write_text("{")
    next((folder / "cache").glob("tokenizer-*.sha256")).write_bytes(b"x" * 1000)
    assert len(json.loads(cli("--json", cwd=folder, script="cache").stdout)) == 4
    done = cli("nowhere", cwd=folder, script="cache")
    assert (done.returncode, done.stdout) == (2, "") and "error: there is no folder nowhere\n" in done.stderr


def test_a_misspelt_folder_of_runs_makes_no_cache_unused(folder: Path) -> None:
    done = cli("--unused", "--yes", "--runs", "rums", cwd=folder, script="cache")
    assert (done.returncode, done.stdout, len(names(folder))) == (2, "", 4)
    assert "error: there is no folder rums\n" in done.stderr


def test_a_build_that_goes_on_is_not_removed(folder: Path) -> None:
    left = folder / "cache" / f".documents-text-{'0' * 16}.part"
    left.mkdir()
    with FileLock(left.with_suffix(".lock")):
        cli("--unused", "--older-than", "0", "--yes", cwd=folder, script="cache")
        assert left.exists()
    cli("--unused", "--older-than", "0", "--yes", cwd=folder, script="cache")
    assert not left.exists()


def test_to_list_leaves_nothing_behind(folder: Path) -> None:
    (folder / "cache" / f".split-{'0' * 16}.json").write_text("{}")
    before = sorted((folder / "cache").iterdir())
    listed = next(line for line in cli(cwd=folder, script="cache").stdout.splitlines() if ".split-" in line)
    assert listed.endswith("(of a stopped build, to go on with)")
    assert sorted((folder / "cache").iterdir()) == before


def test_an_empty_folder_is_said_to_have_no_caches(tmp_path: Path) -> None:
    done = cli(str(tmp_path), cwd=tmp_path, script="cache")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path} has no caches\n", "")
    assert cli(str(tmp_path), "--json", cwd=tmp_path, script="cache").stdout == "[]\n"


@pytest.mark.parametrize(("typed", "left"), [(b"y\n", 2), (b"n\n", 4), (b"\x04", 4)], ids=["y", "n", "Ctrl-D"])
def test_only_yes_at_the_terminal_removes_and_json_names_what_was_removed(
    folder: Path, typed: bytes, left: int
) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "niels_gpt", "cache", "--unused", "--older-than", "0", "--json"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=folder, env=env, stdin=theirs, stdout=-1, stderr=-1) as process:
        os.write(ours, typed)
        said, errors = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0, errors
    assert (len(names(folder)), len(json.loads(said))) == (left, 4 - left)
