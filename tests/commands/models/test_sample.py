"""niels_gpt sample: what it prints, on any terminal, and what it says to a path that holds no run."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_json_has_each_prompt_of_a_file_with_tokens_seconds_and_probabilities(folder: Path) -> None:
    (folder / "prompts.txt").write_text("What is a list?\n\nWhat is a tuple?\n")
    ask = ["runs/smoke_pipeline", "--max-tokens", "5", "--ignore-eos", "--json"]
    done = processes.cli(*ask, "--prompts", "prompts.txt", "--logprobs", "2", cwd=folder, script="sample")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert [answer["prompt"] for answer in answers] == ["What is a list?", "What is a tuple?"]
    for answer in answers:
        assert answer["tokens"] == len(answer["logprobs"]) == 5 and answer["finish_reason"] == "length"
        assert "".join(token["text"] for token in answer["logprobs"]) == answer["text"]
        assert 0 < answer["seconds"] < 60
        for token in answer["logprobs"]:
            first, second = (other["logprob"] for other in token["alternatives"])
            assert second <= first <= 0 and token["logprob"] <= first
    words = [*ask, "--prompt", "What is a tuple?"]
    alone = json.loads(processes.cli(*words, "--logprobs", "2", cwd=folder, script="sample").stdout)
    assert alone["logprobs"] == answers[1]["logprobs"], "an answer depends on its own prompt alone"
    assert "logprobs" not in json.loads(processes.cli(*words, cwd=folder, script="sample").stdout)


def test_a_system_message_and_a_stop_text_change_the_answer(folder: Path) -> None:
    def ask(*more: str) -> Any:
        words = ["runs/smoke_pipeline", "--prompt", "hi", "--json", "--ignore-eos", "--max-tokens", "30", *more]
        return json.loads(processes.cli(*words, cwd=folder, script="sample").stdout)

    plain = ask("--logprobs", "0")
    assert ask("--logprobs", "0")["logprobs"] == plain["logprobs"]
    assert ask("--logprobs", "0", "--system", "Be brief.")["logprobs"] != plain["logprobs"]
    stop = plain["text"][10:14]
    assert ask("--stop", stop)["text"] == plain["text"].partition(stop)[0]
    assert ask("--stop", stop)["finish_reason"] == "stop"
    pretrained = ["runs/smoke_pipeline/pretrain/best.pt", "--prompt", "hi", "--system", "Be brief."]
    done = processes.cli(*pretrained, cwd=folder, script="sample")
    assert done.returncode == 4 and "reads no system message: it is only pretrained" in done.stderr


def test_a_prompt_beyond_the_context_is_cut_and_said_once(folder: Path) -> None:
    ask = ["runs/smoke_pipeline/pretrain", "--max-tokens", "100", "--prompt", "word " * 500]
    done = processes.cli(*ask, cwd=folder, script="sample")
    assert done.returncode == 0
    warning = r"the prompt has \d+ tokens, more than the model sees \(64\): .*\n"
    assert re.fullmatch(warning, done.stderr)
    (folder / "long.txt").write_text(f"{'word ' * 500}\nshort\n{'more ' * 500}\n")
    ask = ["runs/smoke_pipeline", "--max-tokens", "2", "--json", "--prompts", "long.txt"]
    done = processes.cli(*ask, cwd=folder, script="sample")
    assert len(re.findall(warning, done.stderr)) == 2
    dropped = [answer["dropped_tokens"] for answer in json.loads(done.stdout)["answers"]]
    assert dropped[0] > 100 < dropped[2] and dropped[1] == 0


def test_ctrl_c_in_an_answer_ends_its_line(folder: Path) -> None:
    words = ["runs/smoke_pipeline", "--prompt", "hi", "--ignore-eos", "--max-tokens", "1000000"]
    command = [sys.executable, "-P", "-m", "niels_gpt", "sample", *words]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        assert child.stdout and child.stdout.read(100).startswith(b"you: hi\nmodel: ")
        child.send_signal(signal.SIGINT)
        assert child.stdout.read().endswith(b"\nstopped; saved files are intact\n")
    assert child.returncode == 130


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
        (["nothing"], 2, "one of the arguments --prompt --prompts --chat is required"),
        (["nothing", "--chat", "--json"], 2, "--json goes with --prompt TEXT or --prompts FILE"),
        ([*ASK, "--logprobs", "1"], 2, "--logprobs goes with --json"),
        ([*ASK, "--logprobs", "21", "--json"], 2, "--logprobs must be at most 20"),
        ([*ASK, "--stop", ""], 2, "--stop must have 1 to 256 characters"),
        ([*ASK, "--temperature", "-1"], 2, "--temperature must be at least 0"),
        *(([*ASK, "--temperature", t], 2, "--temperature must be a finite number") for t in ("nan", "inf")),
        *(([*ASK, "--seed", seed], 2, "--seed must be ") for seed in ("-1", str(2**64))),
        *(([*ASK, "--top-p", p], 2, "--top-p must be ") for p in ("0", "1.1")),
        (["nothing", "--prompts", "missing.txt"], 2, "missing.txt: cannot be read"),
        (["nothing", "--prompts", os.devnull], 2, f"{os.devnull}: not a regular file"),
    ],
)
def test_what_cannot_be_sampled_is_refused(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    done = processes.cli(*arguments, cwd=tmp_path, script="sample")
    assert done.returncode == code
    assert said in done.stderr and "Traceback" not in done.stderr
