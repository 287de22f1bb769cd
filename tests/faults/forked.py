"""The command line in a forked child that tells at any moment what its run is doing, to be stopped just then."""

import mmap
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from support.warm import begin, context, nothing, settle

from niels_gpt.device import read_proc_bytes

PHASES = {  # what is watched, by the number that stands for it in the file `phase`
    1: ("train.run.runner", "open_tokenizer"),
    2: ("niels_gpt.data.token_cache", "_build"),
    3: ("train.loop.steps", "optimizer_step"),
    4: ("train.loop.steps", "evaluate"),
    5: ("train.loop.steps", "save_step"),
}
NAMES = {1: "tokenizer", 2: "cache", 3: "step", 4: "evaluation", 5: "save"}
NOT_BEGUN = 255  # until the script listens to signals
LIMITED = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
LONGEST = 120.0  # seconds that anything is waited for


class Forked:
    """A script of the project, carried out in `cwd`, where `stdout`, `stderr` and `phase` are files."""

    def __init__(
        self, *arguments: str, cwd: Path, before: Callable[[], Any] = nothing, script: str = "train"
    ) -> None:
        for name, content in (("phase", bytes([NOT_BEGUN])), ("stdout", b""), ("stderr", b"")):
            (cwd / name).write_bytes(content)
        self.cwd = cwd
        self.process = context().Process(target=_carry_out, args=(script, arguments, cwd, before))
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    def phase(self) -> int:
        """Return the number of what it is doing, 0 for anything else."""
        return (self.cwd / "phase").read_bytes()[0]

    def wait_for(self, phase: int) -> bool:
        """Wait until it does something, and return whether it still lives."""
        deadline = time.monotonic() + LONGEST
        while self.phase() != phase and self.process.is_alive():
            assert time.monotonic() < deadline, (self.cwd / "stderr").read_text()
            time.sleep(0.0005)
        return self.process.is_alive()

    def send(self, signum: int) -> None:
        """Send a real signal."""
        os.kill(self.pid, signum)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its exit code, negative for a signal, and what it said."""
        self.process.join(LONGEST)
        assert self.process.exitcode is not None, "it does not end"
        said = [(self.cwd / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return self.process.exitcode, "".join(said)


def forked(
    *arguments: str, cwd: Path, before: Callable[[], Any] = nothing, script: str = "train"
) -> tuple[int, str]:
    """Run a command line to its end; return its exit code and what it said."""
    return Forked(*arguments, cwd=cwd, before=before, script=script).end()


def with_memory_for(more: int) -> None:
    """Let this process have so many bytes of addresses beyond those it has."""
    limit = read_proc_bytes("/proc/self/status", "VmSize") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _carry_out(script: str, arguments: tuple[str, ...], cwd: Path, before: Callable[[], Any]) -> None:
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    with open("phase", "r+b") as file:
        phase = mmap.mmap(file.fileno(), 1)
    for number, (module, name) in PHASES.items():
        setattr(import_module(module), name, partial(_marked, getattr(import_module(module), name), phase, number))
    cli = import_module("train.cli.command")
    vars(cli)["end_with_parent"] = partial(_begun, vars(cli)["end_with_parent"], phase)
    before()
    settle(None, None)
    begin(["python", str(ROOT / "scripts" / f"{script}.py"), *arguments])


def _begun(function: Callable[[], Any], phase: mmap.mmap) -> None:
    """Let the test know that signals are listened to."""
    phase[0] = 0
    function()


def _marked(function: Callable[..., Any], phase: mmap.mmap, number: int, *args: Any, **kwargs: Any) -> Any:
    """Let the test know what is going on."""
    outside, phase[0] = phase[0], number
    try:
        return function(*args, **kwargs)
    finally:
        phase[0] = outside
