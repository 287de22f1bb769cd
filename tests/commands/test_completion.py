"""Completion in real shells, by the TAB key: commands, then Hydra's groups, options and settings."""

import os
import pty
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

CODE = "x$(touch${IFS}ran)"  # the name of somebody's experiment
SHELLS = {"bash": ["--norc", "-i"], "zsh": ["-f", "-i"]}
COMPLETED = {
    "niels_gpt compa": "re",
    "niels_gpt train precis": "ion=",
    "niels_gpt train precision=fp16 model=sm": "all",
    "niels_gpt train experiment=x": "",
    "niels_gpt doctor model.drop": "out=",
    "niels_gpt prepare data.separ": "ator=",
    "niels_gpt sample notes.t": "xt",
}
LONGEST = 60.0  # seconds


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """The terminal of an interactive shell that completes niels_gpt."""
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / f"{CODE}.yaml").write_text("# @package _global_\n")
    program = tmp_path / "bin" / "niels_gpt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m niels_gpt "$@"\n')
    program.chmod(0o755)
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        path = f"{program.parent}:{os.environ['PATH']}"
        own = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"}
        os.execvpe(shell, [shell, *SHELLS[shell]], os.environ | own)
    os.write(descriptor, f'eval "$(niels_gpt completion {shell})"; echo rea""dy\n'.encode())
    read_until(descriptor, "ready\r")
    yield descriptor
    os.close(descriptor)
    os.waitpid(pid, 0)


def read_until(descriptor: int, expected: str) -> None:
    """Read what a terminal shows until it shows this."""
    shown, deadline = "", time.monotonic() + LONGEST
    while expected not in shown:
        assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], shown
        shown += os.read(descriptor, 1 << 16).decode(errors="replace")


@pytest.mark.slow
def test_commands_groups_settings_and_files_are_completed(terminal: int, tmp_path: Path) -> None:
    for typed, rest in COMPLETED.items():
        os.write(terminal, f"{typed}\t".encode())
        read_until(terminal, typed + rest)
        os.write(terminal, b"\x15")  # clears the line
    assert not (tmp_path / "ran").exists(), "the name of a file was carried out"
