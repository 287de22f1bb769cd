"""What stands in the environment never comes to stand in a file of a run."""

import os
from pathlib import Path

import pytest
from support import warm

from faults.scale import note, scaled

CANARY = "canary-5b1f7c"
SMOKE = ["experiment=smoke_pretrain", "data.size=200", "model.V=300", "train.total_steps=2"]
SWEEP = ["-m", *SMOKE, "train.seed=1,2"]  # its jobs are runs, too


def files_with(secret: str, folder: Path) -> list[str]:
    """Return every file, and every name, in which a secret is found."""
    return [
        str(path)
        for path in folder.rglob("*")
        if secret in str(path) or (path.is_file() and secret.encode() in path.read_bytes())
    ]


@pytest.fixture
def secrets() -> dict[str, str]:
    """The variables of a process, with secrets among them."""
    return os.environ | {"HF_TOKEN": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY, "WANDB_API_KEY": CANARY}


@pytest.mark.parametrize(("kind", "words", "reports"), [("sweep", SWEEP, 4), ("run", SMOKE, 0)][: scaled(1, 2)])
def test_nothing_of_the_environment_is_written(
    kind: str, words: list[str], reports: int, tmp_path: Path, secrets: dict[str, str]
) -> None:
    done = warm.cli(*words, cwd=tmp_path, env=secrets)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"cache", "runs"} == set(os.listdir(tmp_path)) and len(written) > 10
    assert len([path for path in written if path.stem == "sweep"]) == reports
    assert files_with(CANARY, tmp_path) == []
    note(f"security, secrets of a {kind}", "0 leaked", f"0 in {len(written)} files of a {kind} and its cache")
