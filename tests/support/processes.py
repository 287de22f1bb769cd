"""Scripts and runs of the project in child processes, which tests signal, limit and kill.

A child comes from multiprocessing's forkserver, which has imported torch already. A Python that the child starts
is a fresh one. No child ignores a signal because the tests' own parent does, as nohup does.
"""

import functools
import logging
import multiprocessing
import os
import pickle
import pkgutil
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conftest import ROOT

from niels_gpt.device import read_proc_bytes
from train.commands.program import main
from train.config.schema import RunCfg
from train.run import run

PRELOADED = ["torch._dynamo", "matplotlib.backends.backend_agg", "matplotlib.figure", "rich.live", "rich.table"]
PRELOADED += ["train.run.runner", "train.commands.train", "support.processes"]
IMPORTS = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
LONGEST = 300.0  # seconds that a child may take
KILLED = -signal.SIGKILL  # an exit code
Function = Callable[[], object]


@functools.cache
def context() -> ForkServerContext:
    """Return the context in which to make processes. Its server has one thread, and imports by PYTHONPATH."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, PYTHONPATH=IMPORTS, OMP_NUM_THREADS="1"):
        ensure_running()
    return made


class Child:
    """A process that calls a function in the folder `cwd`, with files for its standard streams.

    It calls `before` first, and so does each Python that it starts, by way of a sitecustomize module.
    """

    def __init__(
        self, function: Function, *, cwd: Path, argv: Sequence[str] = (), before: Function | None = None,
        env: Mapping[str, str] | None = None, input: str = "",
    ) -> None:  # fmt: skip
        self.cwd, self._folder = cwd, tempfile.TemporaryDirectory()
        folder, env = Path(self._folder.name), dict(os.environ if env is None else env)
        self._streams = [folder / name for name in ("stdin", "stdout", "stderr")]
        self._streams[0].write_text(input)
        if before:
            code = f"import pickle\npickle.loads({pickle.dumps(before)!r})()\n"
            (folder / "sitecustomize.py").write_text(code)
            env["PYTHONPATH"] = os.pathsep.join([str(folder), IMPORTS])
        self.process = context().Process(target=_call, args=(function, self._streams, cwd, argv, before, env))
        self.process.start()
        self.pid = self.process.pid or 0

    def send(self, signum: int) -> None:
        """Send a signal."""
        os.kill(self.pid, signum)

    def wait_for(self, name: str) -> bool:
        """Wait until there is a file of this name in its folder; return whether the process still runs."""
        wait_until(lambda: (self.cwd / name).exists() or not self.process.is_alive())
        return self.process.is_alive()

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return its exit code, negative for a signal, and its output."""
        self.process.join(LONGEST)
        if (code := self.process.exitcode) is None:
            self.process.kill()
            self.process.join()
        stdout, stderr = (stream.read_text("utf-8", "replace") for stream in self._streams[1:])
        self._folder.cleanup()
        assert code is not None, f"it did not end within {LONGEST:.0f} s: {stderr}"
        return subprocess.CompletedProcess([], code, stdout, stderr)


def start(*arguments: str, script: str = "train", **keywords: Any) -> Child:
    """Start scripts/train.py, or another command of niels_gpt; the keywords are those of Child."""
    path = str(ROOT / "scripts" / "train.py")
    function = partial(_run_script, path) if script == "train" else partial(main, [script, *arguments])
    return Child(function, argv=[path if script == "train" else "niels_gpt", *arguments], **keywords)


def cli(*arguments: str, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of the project to its end."""
    return start(*arguments, **keywords).end()


def start_run(plan: list[RunCfg], before: Function | None = None) -> Child:
    """Start a plan that is loaded already; the child logs to its stderr."""
    return Child(partial(_run_plan, plan), cwd=Path.cwd(), before=before)


def wait_until(reached: Callable[[], object], seconds: float = 120) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"not reached within {seconds:.0f} s"
        time.sleep(0.002)


def announce(name: str) -> None:
    """Write this name into the file `reached` whenever its function is called."""
    function = pkgutil.resolve_name(name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        with Path("reached").open("a") as file:
            file.write(f"{name}\n")
        return function(*arguments, **keywords)

    mock.patch(name, call).start()


def limit_memory(more: int) -> None:
    """Let this process have so many bytes of addresses beyond those it has."""
    limit = read_proc_bytes("/proc/self/status", "VmSize") + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def reset_signals() -> None:
    """Handle signals as a program in a terminal does, whatever the parent ignores: for Popen's preexec_fn, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)


def _call(function: Function, streams: Sequence[Path], cwd: Path, argv: Sequence[str],
          before: Function | None, env: Mapping[str, str]) -> None:  # fmt: skip
    reset_signals()
    for number, path in enumerate(streams):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    # SIM115: they stay open as long as the process does.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = list(argv)
    if before:
        before()
    function()


def _run_script(path: str) -> None:
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


def _run_plan(plan: list[RunCfg]) -> None:
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO)
    run(plan)
