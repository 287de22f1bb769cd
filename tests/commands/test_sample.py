"""niels_gpt sample: what it prints, on any terminal, and what it says to a path that holds no run."""

import os
from pathlib import Path

import pytest
from conftest import cli
from support import processes
from support.made_runs import made_job, made_run

MISSING = (
    "error: nothing does not exist\nhint: give a run folder, a phase's folder, a checkpoint or a Hugging Face "
)
ASK = ["nothing", "--prompt", "a"]
ASCII = os.environ | {"PYTHONIOENCODING": "ascii"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of both phases."""
    folder = tmp_path_factory.mktemp("sample")
    done = processes.cli("experiment=smoke_pipeline", "data.size=200", "model.V=300", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_prompt_is_shown_with_the_labelled_answer_or_is_continued(folder: Path) -> None:
    ask = ["--max-tokens", "5", "--prompt", "hé"]
    for path, start in (
        ("runs/smoke_pipeline", "you: hé\nmodel: "),
        ("runs/smoke_pipeline/sft", "you: hé\nmodel: "),
        ("runs/smoke_pipeline/pretrain/best.pt", "hé"),
    ):
        done = processes.cli(path, *ask, cwd=folder, script="sample")
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(start)
        assert len(done.stdout) > len(start) + 1


def test_a_chat_says_how_to_leave_it_and_labels_each_answer(folder: Path) -> None:
    for said in ("hi\nyes\n\nunread\n", "hi\nyes\n"):  # an empty line, and the end of the input
        chat = ["runs/smoke_pipeline", "--chat", "--max-tokens", "5"]
        done = processes.cli(*chat, cwd=folder, script="sample", input=said)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("An empty line, Ctrl-D or Ctrl-C ends the chat.\nyou: model: ")
        assert (done.stdout.count("you: "), done.stdout.count("model: ")) == (3, 2)


def test_on_a_terminal_that_lacks_a_character_it_is_escaped(folder: Path) -> None:
    words = ["runs/smoke_pipeline", "--max-tokens", "30"]
    asked = cli(*words, "--prompt", "hé", cwd=folder, script="sample", env=ASCII)
    assert (asked.returncode, asked.stderr) == (0, "") and asked.stdout.startswith("you: h\\xe9\nmodel: ")
    chat = cli(*words, "--chat", cwd=folder, script="sample", env=ASCII, input="hé\n\n")
    assert (chat.returncode, chat.stderr) == (0, "") and chat.stdout.isascii()


def test_a_folder_of_runs_is_refused_with_the_command_that_ranks_them(tmp_path: Path) -> None:
    for n in range(5):
        made_run(tmp_path / "sw" / f"lr={n}", [n])
        (tmp_path / "sw" / f"lr={n}" / "pretrain" / "latest.pt").touch()
    made_job(tmp_path / "sw" / "lr=5", "failed")
    done = processes.cli("sw", "--prompt", "a", cwd=tmp_path, script="sample")
    error, hint = done.stderr.splitlines()
    assert error == "error: sw is a folder of runs: sw/lr=0, sw/lr=1, sw/lr=2 and 2 more"
    assert hint == "hint: name one of them; niels_gpt compare sw ranks them"
    assert (done.returncode, done.stdout) == (4, "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (ASK, 4, MISSING),
        ([".", "--prompt", "a"], 4, "error: . has no checkpoints"),
        (["nothing"], 2, "give either --prompt TEXT or --chat"),
        *(([*ASK, "--temperature", t], 2, "--temperature must be at least 0") for t in ("-1", "nan", "inf")),
        *(([*ASK, "--seed", seed], 2, "--seed must be 0 to 2**64 - 1") for seed in ("-1", str(2**64))),
    ],
)
def test_what_cannot_be_sampled_is_refused(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = processes.cli(*arguments, cwd=tmp_path, script="sample")
    assert done.returncode == code
    assert said in done.stderr and "Traceback" not in done.stderr
