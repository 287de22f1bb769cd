"""Run a command: print its errors with a hint, and exit with their code."""

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from niels_gpt.errors import ConfigError, NielsError, OutOfMemory, first_line, is_out_of_memory
from niels_gpt.interruptible import has_abandoned_call
from train.artifacts.disk import make_disk_error
from train.cli.console import ConsoleHandler, outlive_readers
from train.cli.signals import ENDING, Terminated, end_at_once
from train.cli.subprocesses import end_with_parent
from train.config.hydra_errors import Refusal, explain_refusal
from train.config.suggest import HELP

DEBUG = "NIELS_DEBUG"
NO_TRIAL = ("Record does not exist.", "No trials are completed yet.")  # Optuna's words for a study without a value
ENGINES = ("hydra", "omegaconf", "antlr4", "yaml", "optuna", "sqlalchemy")  # what they raise is about settings
SMALLER = "close what else takes memory, raise the limit that is set, or take a smaller train.B, model.T or model"
log = logging.getLogger("niels_gpt")


def command(main: Callable[[], Any], *, outlives_readers: bool = False) -> None:
    """Run a script's main and end the process with its exit code; training outlives who reads its output."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through to here, where they all look alike
    outlive_readers(("stdout", "stderr") if outlives_readers else ("stderr",))
    for signum in ENDING:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup, or in a script's background
            signal.signal(signum, end_at_once)
    end_with_parent()
    try:
        with exit_codes():
            try:
                main()
            except SystemExit:  # as of --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()  # here, where it is known what a reader that has gone means
    except SystemExit as end:
        if isinstance(end.code, int) and has_abandoned_call():
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(end.code)
        raise


class Parser(argparse.ArgumentParser):
    """A parser that refuses a command line in the form of all errors."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(message, f"python scripts/{self.prog} --help shows what it takes")


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors and signals into lines for a person and the exit code that they stand for."""
    try:
        yield
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        raise SystemExit(report_error(error)) from None
    except (KeyboardInterrupt, Terminated) as stopped:
        print("stopped; what was saved before is as it was", file=sys.stderr)
        raise SystemExit(128 + (stopped.signum if isinstance(stopped, Terminated) else signal.SIGINT)) from None


@contextmanager
def defer_signals() -> Iterator[None]:
    """Let signals wait, as while torch is imported: it turns an interrupt into an error of its own.

    Their handlers are replaced. Blocking the signals here would not do: another thread, such as the lifeline's or
    one of numpy's, would take them, and Python would still call the handler in this one.
    """
    arrived: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        for signum in ENDING:
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # None: not set by Python
                before[signum] = signal.signal(signum, lambda signum, _: arrived.append(signum))
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for late in arrived:
            signal.raise_signal(late)


def report_error(error: Exception) -> int:
    """Print `error` for a person, put its traceback into the run's log, and return its exit code."""
    told = _in_our_words(error)
    if any(isinstance(handler, ConsoleHandler) for handler in logging.getLogger().handlers):
        log.error("the run ended", exc_info=error)
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    for line in str(told).splitlines():
        print(f"error: {line}", file=sys.stderr)
    print(f"hint: {told.hint}", file=sys.stderr)
    return told.exit_code


def _in_our_words(error: Exception) -> NielsError:
    """Return any error as one of this project's, which has a hint, an exit code and nothing a terminal acts on."""
    if isinstance(error, NielsError):
        return error
    if isinstance(error, Refusal):
        return ConfigError(explain_refusal(error), HELP)
    if isinstance(error, ValueError) and str(error) in NO_TRIAL:
        return NielsError(
            "no trial of the search has finished; sweep.html says why", "the same command tries them again"
        )
    if is_out_of_memory(error):
        return OutOfMemory(f"out of memory ({first_line(error)})", SMALLER)
    if isinstance(error, OSError):
        return make_disk_error(error)
    if _comes_from_hydra(error):
        return ConfigError(explain_refusal(error), HELP)
    return NielsError(
        f"{type(error).__name__}: {error}",
        f"{DEBUG}=1 shows where; if no setting explains it, it is a fault of the program",
    )


def _comes_from_hydra(error: BaseException) -> bool:
    """Return whether Hydra or its search raised an error, as for flags that do not go together."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(ENGINES)
