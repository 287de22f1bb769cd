"""What stands in the environment never comes to stand in a file of a run."""

import os
from pathlib import Path

import pytest
from conftest import cli

from faults.scale import note

CANARY = "canary-5b1f7c"
SMOKE = ["experiment=smoke_pretrain", "data.size=200", "model.V=300", "train.total_steps=2"]


def files_with(secret: str, folder: Path) -> list[str]:
    """Return every file, and every name, in which a secret is found."""
    return [
        str(path)
        for path in folder.rglob("*")
        if secret in str(path) or (path.is_file() and secret.encode() in path.read_bytes())
    ]


def test_a_run_and_a_sweep_write_nothing_of_the_environment(tmp_path: Path) -> None:
    secrets = {"HF_TOKEN": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "WANDB_API_KEY": CANARY}
    done = cli(*SMOKE, cwd=tmp_path, env=os.environ | secrets)
    assert done.returncode == 0, done.stderr
    asked = cli(*SMOKE, "name=${oc.env:HF_TOKEN}", cwd=tmp_path, env=os.environ | secrets)
    assert asked.returncode == 2 and "nothing from the environment" in asked.stderr
    assert CANARY not in done.stdout + done.stderr + asked.stdout + asked.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10 and files_with(CANARY, tmp_path) == []
    note("security, secrets", "0 leaked", f"0 in {len(written)} files of a run and its cache")


@pytest.mark.parametrize(
    "word", ["train.Bee=2", "train.B=0", "precision=fp17", "+=abc", "name=a/b", "-m train.B=1,0"]
)
def test_a_bad_override_takes_less_than_a_second_and_a_half_of_the_processor(word: str, tmp_path: Path) -> None:
    before = os.times()
    done = cli(*word.split(), cwd=tmp_path)
    after = os.times()
    took = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 2 and "error: " in done.stderr and os.listdir(tmp_path) == []
    assert took < 1.5
    note(f"config latency, {word}", "below 1.5 s, imports included", f"{took:.2f} s of CPU")
