"""Run a command: print its errors with a hint, and exit with their code."""

import argparse
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from niels_gpt.errors import ConfigError, NielsError, OutOfMemory, Stopped, first_line, is_out_of_memory
from niels_gpt.interruptible import has_abandoned_call
from train.artifacts.disk import make_disk_error
from train.cli.console import FILE_ONLY, ConsoleHandler, WarnOnce, wrap_streams
from train.cli.signals import ENDING, Terminated, raise_on_signal
from train.cli.subprocesses import end_with_parent
from train.config.hydra_errors import Refusal, explain_refusal
from train.config.suggest import point_to_help

DEBUG = "NIELS_DEBUG"
SPIN_COUNT = "10000"  # libgomp's own is 300,000
ENGINES = ("hydra", "omegaconf", "antlr4", "yaml", "optuna", "sqlalchemy")  # their errors are about settings
NO_TRIAL = ("Record does not exist.", "No trials are completed yet.")  # Optuna, when every trial failed
SMALLER = "free some memory, raise the memory limit, or lower train.B, model.T or the model size"
log = logging.getLogger("niels_gpt")


def run_command(main: Callable[[], Any], *, outlives_readers: bool = False) -> None:
    """Run a script's main and exit with its code; training outlives the readers of its output."""
    # Beside busy processes, threads of OpenMP that spin at barriers take the time of those that work
    # (docs/performance.md). Torch, which reads this, is not imported yet.
    if not any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    os.environ["PYTHONSAFEPATH"] = "1"  # for the workers of launchers, as -P is for our own children
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then passes errors on to exit_on_error
    wrap_streams(("stdout", "stderr") if outlives_readers else ("stderr",))
    for signum in ENDING:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup, or in a script's background
            signal.signal(signum, raise_on_signal)
    log.addFilter(WarnOnce())
    end_with_parent()
    try:
        with exit_on_error():
            try:
                main()
            finally:  # inside exit_on_error, which handles a broken pipe
                flush_stdout()
    except SystemExit as end:
        if isinstance(end.code, int) and has_abandoned_call():
            os._exit(end.code)
        raise


def flush_stdout() -> None:
    """Write out what was printed; after a failure, drop the rest, or Python would fail again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ConfigErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of exiting."""
        raise ConfigError(message, f"{self.prog} --help lists the arguments")


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an argument: a whole number from `least`."""

    def number(text: str) -> int:
        if not text.lstrip("-").isdecimal():
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return number


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn errors and signals into a short message and an exit code."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        raise SystemExit(_print_error(error)) from None
    except (KeyboardInterrupt, Terminated) as stopped:
        print("stopped; saved files are intact", file=sys.stderr)
        raise SystemExit(128 + (stopped.args[0] if isinstance(stopped, Terminated) else signal.SIGINT)) from None


@contextmanager
def defer_signals() -> Iterator[None]:
    """Delay signals until the block ends: while torch is imported, an interrupt would turn into an error.

    This replaces their handlers. Blocking the signals would not do: another thread would take them, and Python
    would still call the handler in this one.
    """
    arrived: list[int] = []
    heard = [n for n in ENDING if signal.getsignal(n) not in (signal.SIG_IGN, None)]  # None: not set by Python
    before = {n: signal.signal(n, lambda signum, _: arrived.append(signum)) for n in heard}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for late in arrived:
            signal.raise_signal(late)


def _print_error(error: Exception) -> int:
    """Print an error or a stop for a person, and return its exit code; a traceback goes to the run's log."""
    shown = _to_niels_error(error)
    if isinstance(shown, Stopped):
        log.info("%s", shown, extra={FILE_ONLY: True})
        print(f"{shown}; {shown.hint}", file=sys.stderr)
        return shown.exit_code
    if any(isinstance(handler, ConsoleHandler) for handler in logging.getLogger().handlers):
        log.error("run failed", exc_info=error)
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    for line in str(shown).splitlines():
        print(f"error: {line}", file=sys.stderr)
    print(f"hint: {shown.hint}", file=sys.stderr)
    return shown.exit_code


def _to_niels_error(error: Exception) -> NielsError:
    """Return any error as a NielsError, which has a hint and an exit code and is safe to print."""
    if isinstance(error, NielsError):
        return error
    if isinstance(error, Refusal):  # some are OSErrors, too
        return ConfigError(explain_refusal(error), point_to_help())
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory ({first_line(error)})", SMALLER)
    if isinstance(error, OSError):
        return make_disk_error(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        if extra := _find_extra(module):
            return ConfigError(f"{module} is not installed", f"pip install 'niels_gpt[{extra}]'")
    if str(error) in NO_TRIAL:
        return NielsError("no trial of the search has finished; see sweep.html", "the same command retries them")
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if str(frame.f_globals.get("__name__")).startswith(ENGINES):
        return ConfigError(explain_refusal(error), point_to_help())
    hint = f"{DEBUG}=1 shows the traceback; if no setting explains the error, it is a bug"
    return NielsError(f"{type(error).__name__}: {error}", hint)


def _find_extra(module: str) -> str | None:
    """Return the extra of this project that brings a module."""
    from importlib.metadata import distributions

    declared = [line for found in distributions(name="niels_gpt") for line in found.requires or ()]
    found = re.search(rf"^{re.escape(module)}\b.*extra == ['\"](\w+)", "\n".join(declared), re.MULTILINE)
    return found[1] if found else None
