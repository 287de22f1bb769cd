"""How every command speaks: `error:` and `hint:` lines, an exit code, a traceback only when asked for."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from niels_gpt.errors import ConfigError, NielsError
from train.config import load_plan
from train.folder import claim

DEBUG = "NIELS_DEBUG"
log = logging.getLogger("niels_gpt")


def command(main: Callable[[], Any]) -> None:
    """Run a script's main and end the process with its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through to here, where they all look alike
    with exit_codes():
        main()


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into lines for a person and the exit code that they stand for."""
    try:
        yield
    except Exception as error:
        raise SystemExit(report_error(error)) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def report_error(error: Exception) -> int:
    """Print `error` for a person, put its traceback into the run's log, and return its exit code."""
    code, message, hint = _explain(error)
    if any(isinstance(handler, ConsoleHandler) for handler in logging.getLogger().handlers):
        log.error("the run ended", exc_info=error)
    if os.environ.get(DEBUG):
        traceback.print_exception(error)
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return code


def _explain(error: Exception) -> tuple[int, str, str]:
    """Return exit code, message and hint."""
    if isinstance(error, NielsError):
        return error.exit_code, str(error), error.hint
    if isinstance(error, HydraException | OmegaConfBaseException):
        return (
            ConfigError.exit_code,
            _in_hydra_words(error),
            "python scripts/train.py --help lists all settings",
        )
    return 1, f"{type(error).__name__}: {error}", f"{DEBUG}=1 shows where; this is a fault of the program"


def _in_hydra_words(error: BaseException) -> str:
    """Return what Hydra says, and below it what OmegaConf said to Hydra, without their internals."""
    causes = [error] + ([error.__cause__] if error.__cause__ else [])
    lines = [line.strip() for cause in causes for line in str(cause).splitlines()]
    internals = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "To append to your config",
        "Config search",
        "provider=",
    )
    kept = [line.removeprefix("In 'config': ") for line in lines if line and not line.startswith(internals)]
    return "; ".join(dict.fromkeys(kept)).replace(":;", ":")


class ConsoleHandler(logging.Handler):
    """Prints messages as they are, above a progress bar where there is one; tracebacks are for the file."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        from rich import get_console

        if not record.exc_info:
            get_console().print(self.format(record), soft_wrap=True, markup=False, highlight=False)


class Gate(Callback):
    """Checks a run before Hydra writes anything: a bad setting or a folder in use leaves no trace."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a plan that cannot be carried out; SystemExit, since Hydra only warns of other exceptions."""
        with exit_codes():
            claim(load_plan(config))
