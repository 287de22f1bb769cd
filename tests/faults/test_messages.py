"""Every command reports errors in one form: a line, a hint and an exit code; no traceback, no secret."""

import os
import pickle
import re
from pathlib import Path

import pytest
from support.processes import cli

from niels_gpt.errors import CheckpointError
from niels_gpt.weights.checkpoint import read_checkpoint
from train.commands.program import COMMANDS
from train.run import runner

REFUSED = [
    ("train", ["train.B=0"], 2),
    ("train", ["-m", "train.B=1,0"], 2),
    ("train", ["--resolve"], 2),
    ("train", ["dir=/dev/null/run"], 8),
    ("prepare", ["data.fles=notes"], 2),
    ("prepare", ["phase=pretrain", "data=text", "data.files=nowhere.txt"], 3),
    ("sample", ["nothing", "--prompt", "a", "--top-k", "few"], 2),
    ("sample", ["nothing", "--prompt", "a"], 4),
    ("serve", ["nothing", "--port", "0"], 4),
    ("eval", ["nothing", "--stride", "8"], 2),
    ("eval", ["nothing", "--files", "nowhere.txt"], 4),
    ("export", ["nothing", "out"], 4),
    ("compare", ["nothing"], 2),
    ("checkpoints", ["nothing"], 4),
    ("doctor", ["--out", "no/such/folder.json"], 2),
    ("numerics", ["nothing"], 4),
    ("bench", ["race", "--contestants", "nobody"], 2),
    ("cache", ["nowhere"], 2),
    ("completion", ["fish"], 2),
    ("import-json", ["missing.json"], 2),
]
SMOKE = ["experiment=smoke_pretrain", "data.size=200", "model.V=300"]


@pytest.mark.parametrize(("script", "arguments", "code"), REFUSED)
def test_every_command_refuses_in_one_form(tmp_path: Path, script: str, arguments: list[str], code: int) -> None:
    done = cli(*arguments, cwd=tmp_path, script=script)
    assert (done.returncode, done.stdout) in ((code, ""), (code, "runs/default: checking 2 jobs\n")), done.stderr
    assert re.fullmatch(r"(error: .+\n)+hint: .+\n", done.stderr) and len(done.stderr.splitlines()) <= 6
    assert os.listdir(tmp_path) == [], "a refused command leaves nothing"


def test_the_table_has_every_command() -> None:
    assert {script for script, _, _ in REFUSED} == COMMANDS.keys()


def test_text_shorter_than_a_sequence_is_reported_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ten bytes.")
    (tmp_path / "b.txt").write_text("ten others")
    text = ["data=text", "data.files=[*.txt]", "data.tokenizer=bytes", "model.V=256", "model.T=11"]
    done = cli("phase=pretrain", *text, cwd=tmp_path)
    told = "the text has 11 tokens, but a sequence and its targets need T+1=12"
    assert done.returncode == 3 and f"error: text, train split: {told}\nhint: add more text" in done.stderr


def fail() -> None:
    vars(runner)["log_start"] = None  # which cannot be called


def test_a_fault_of_the_program_has_its_form_too_and_the_log_has_the_traceback(tmp_path: Path) -> None:
    done = cli(*SMOKE, cwd=tmp_path, before=fail)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "error: TypeError: 'NoneType' object is not callable\nhint: NIELS_DEBUG=1 shows the traceback"
        in done.stderr
    )
    logged = (tmp_path / "runs" / "smoke_pretrain" / "train.log").read_text()
    assert "Traceback" in logged and "TypeError: " in logged
    done = cli(*SMOKE, cwd=tmp_path, before=fail, env=os.environ | {"NIELS_DEBUG": "1"})
    assert done.returncode == 1 and "Traceback" in done.stderr


HOSTILE = "a\x1b[2Jb\u202e\udc80"
SPELT = "a\\x1b[2Jb\\u202e\\udc80"


def test_what_a_message_or_a_hint_quotes_is_spelt_out_once(tmp_path: Path) -> None:
    """A hint names the files beside a checkpoint, and any of them may have a name that a terminal acts on."""
    (tmp_path / f"{HOSTILE}.pt").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / f"{HOSTILE}.missing.pt")
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):  # as between the jobs of a sweep
        assert f"{SPELT}.missing.pt: there is no such checkpoint" in str(error)
        assert error.hint == f"others in its folder: {SPELT}.pt"
    done = cli(f"{HOSTILE}.run", "--prompt", "a", cwd=tmp_path, script="sample")
    assert done.returncode == 4
    assert done.stderr.startswith(f"error: {SPELT}.run does not exist\nhint: ")


@pytest.mark.slow
def test_nothing_of_the_environment_is_written(tmp_path: Path) -> None:
    canary = "canary-5b1f7c"
    secrets = os.environ | {"HF_TOKEN": canary, "AWS_SECRET_ACCESS_KEY": canary, "WANDB_API_KEY": canary}
    smoke = [*SMOKE, "train.total_steps=2"]
    for words in (smoke, ["-m", *smoke, "name=sweep", "train.seed=1,2"]):
        done = cli(*words, cwd=tmp_path, env=secrets)
        assert done.returncode == 0, done.stderr
        assert canary not in done.stdout + done.stderr
    assert {"cache", "runs"} == set(os.listdir(tmp_path))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in written if path.stem == "sweep"]) == 4, "the reports"
    for path in written:
        assert canary not in str(path) and canary.encode() not in path.read_bytes(), path
