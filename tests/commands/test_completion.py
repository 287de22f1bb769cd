"""Completion in real shells: commands, then Hydra's groups, options and settings."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

CODE = "x$(touch${IFS}ran)"  # the name of somebody's experiment
CASES = {
    "niels_gpt com": "compare completion",
    "niels_gpt train precis": "precision=",
    "niels_gpt train precision=fp16 model=s": "model=small",
    "niels_gpt train experiment=x": f"experiment={CODE}",
    "niels_gpt doctor model.drop": "model.dropout=",
    "niels_gpt sample ru": "",  # files, by the shell itself
}
ASK = """
eval "$(niels_gpt completion %s)"
for line in "$@"; do
    COMP_LINE="$line" COMP_POINT=${#line} COMPREPLY=()
    _niels_gpt
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_commands_groups_and_settings_are_completed(shell: str, tmp_path: Path) -> None:
    if not (path := shutil.which(shell)):
        pytest.skip(f"{shell} is not installed")
    own = tmp_path / "conf" / "experiment"
    own.mkdir(parents=True)
    (own / f"{CODE}.yaml").write_text("# @package _global_\n")
    program = tmp_path / "niels_gpt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m niels_gpt "$@"\n')
    program.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [path, "-c", ASK % shell, shell, *CASES]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    found = [" ".join(sorted(line.split())) for line in done.stdout.splitlines()]
    after = r"^\w+=(?=\w)" if shell == "bash" else "$^"  # bash replaces only what follows a =
    assert found == [re.sub(after, "", text) for text in CASES.values()] and not done.stderr
    assert not (tmp_path / "ran").exists(), "the name of a file was carried out"
