"""Warm starts: scripts and modules in children that are forked from a process which has imported torch.

A child is a real process, with files, signals and memory of its own; it only finds its imports made. Whatever
needs a fresh interpreter, as the variables that libraries read while they load, is for `conftest.cli`.
"""

import inspect
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

from conftest import ROOT
from hydra.core.global_hydra import GlobalHydra

from train.artifacts import run_folder

PRELOADED = [
    *("torch._dynamo", "matplotlib.backends.backend_agg", "matplotlib.figure"),  # a run imports them as it goes
    *(
        "train.run.runner",
        "train.cli.command",
        "hydra.main",
        "rich.live",
        "rich.table",
        "faults.forked",
        "faults.children",
    ),
]
LONGEST = 300.0  # seconds that a script may take
EXECUTE: Any = subprocess.Popen._execute_child  # type: ignore[attr-defined]  # where Popen starts a process
Before = Callable[[], Any]


def nothing() -> None:
    """Go on as it is."""


@cache
def context() -> ForkServerContext:
    """Return the maker of children. Their parent finds modules by PYTHONPATH alone, and needs one thread."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    found = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with mock.patch.dict(os.environ, PYTHONPATH=found, OMP_NUM_THREADS="1"):
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]  # unknown to typeshed
    return made


class Script:
    """A script of the project, begun in `cwd`; the Pythons that it starts are forked from it.

    All of them do `before` first; stdin, stdout and stderr are files in the folder `streams`.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        streams: Path,
        script: str = "train",
        env: Mapping[str, str] | None = None,
        before: Before = nothing,
    ) -> None:
        self.arguments = arguments
        self.streams = [streams / name for name in ("stdin", "stdout", "stderr")]
        start = partial(begin, ["python", str(ROOT / "scripts" / f"{script}.py"), *arguments], before)
        given = (start, self.streams, cwd, dict(env or os.environ))
        self.process = context().Process(target=_on_streams, args=given)
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return its exit code, negative for a signal, and what it said."""
        self.process.join(LONGEST)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"it does not end in {LONGEST:.0f} s")
        _, stdout, stderr = (stream.read_text(encoding="utf-8") for stream in self.streams)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, stdout, stderr)


def cli(*arguments: str, cwd: Path, input: str = "", **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Do as `conftest.cli` does; the keywords are those of Script."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "stdin").write_text(input)
        return Script(*arguments, cwd=cwd, streams=Path(name), **keywords).end()


def _on_streams(start: Before, streams: Sequence[Path], cwd: Path, env: Mapping[str, str]) -> None:
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    settle(cwd, env)
    start()


def settle(cwd: str | Path | None, env: Mapping[str, str] | None) -> None:
    """Take the place, the variables and the streams that a fresh Python would begin with."""
    if cwd:
        os.chdir(cwd)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
    # SIM115: they stay open as long as the process does, as those that Python opens at its start.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def begin(command: Sequence[str], before: Before = nothing) -> None:
    """Do what `python SCRIPT ...` or `python -m MODULE ...` does, and see to the Pythons that it starts."""
    Popen.before = before
    vars(subprocess)["Popen"] = Popen
    _, first, *rest = command
    sys.argv = [first, *rest] if first != "-m" else rest
    sys.path.insert(0, str(Path(first).parent) if first != "-m" else "")
    before()
    if first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(first, run_name="__main__")


class Popen(subprocess.Popen[Any]):
    """A process as the standard library's; a Python is forked from this one instead of started.

    For that it takes the place of inner parts of subprocess and multiprocessing, which typeshed does not know.
    """

    before: Before = nothing  # what it does first

    def _execute_child(self, *given: Any) -> None:
        asked = inspect.signature(EXECUTE).bind(self, *given).arguments
        if next(iter(asked["args"])) != sys.executable:
            EXECUTE(self, *given)
            return
        self.pid = os.fork()
        if not self.pid:
            os._exit(multiprocessing.Process(target=_become, args=(asked,))._bootstrap())  # type: ignore[attr-defined]
        self._child_created = True
        ends = [asked[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]


def _become(asked: Mapping[str, Any]) -> None:
    """Turn from the copy of a parent into the process that it asked for."""
    if asked["start_new_session"]:
        os.setsid()
    for number, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
        if asked[name] != -1:
            os.dup2(asked[name], number)
    _forget({0, 1, 2, *asked["pass_fds"]})
    settle(asked["cwd"], asked["env"])
    begin(asked["args"], Popen.before)


def _forget(kept: set[int]) -> None:
    """Let go of what a fresh process would not have: the parent's files, locks, handlers and Hydra."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in {int(name) for name in os.listdir("/dev/fd")} - kept - {nowhere}:
        try:
            os.fstat(number)
        except OSError:  # it was the list's own
            continue
        os.dup2(nowhere, number)  # closed, but for those who will close it later
    run_folder._held.clear()
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    for log in (logging.getLogger(), logging.getLogger("niels_gpt")):
        log.handlers.clear()
    GlobalHydra.instance().clear()
