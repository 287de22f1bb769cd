"""Secrets of the environment appear in no file of a run or a sweep."""

import os
from pathlib import Path

import pytest
from support.processes import cli

pytestmark = pytest.mark.slow
CANARY = "canary-5b1f7c"
SMOKE = ["experiment=smoke_pretrain", "data.size=200", "model.V=300", "train.total_steps=2"]


def test_nothing_of_the_environment_is_written(tmp_path: Path) -> None:
    secrets = os.environ | {"HF_TOKEN": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "WANDB_API_KEY": CANARY}
    for words in (SMOKE, ["-m", *SMOKE, "name=sweep", "train.seed=1,2"]):
        done = cli(*words, cwd=tmp_path, env=secrets)
        assert done.returncode == 0, done.stderr
        assert CANARY not in done.stdout + done.stderr
    assert {"cache", "runs"} == set(os.listdir(tmp_path))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in written if path.stem == "sweep"]) == 4, "the reports"
    for path in written:
        assert CANARY not in str(path) and CANARY.encode() not in path.read_bytes(), path
