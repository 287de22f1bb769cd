"""Asks a module in a fresh process: what it dies of, it dies of alone, and its memory is its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from train.lifeline import lifeline

ROOT = Path(__file__).resolve().parent.parent


def ask(
    module: str,
    question: str,
    *,
    threads: int,
    variables: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` with a question on its stdin, on so many threads; it ends with this process.

    Raises:
        subprocess.TimeoutExpired: it took more than `timeout` seconds.
    """
    with lifeline() as (reading, end):
        return subprocess.run(
            [sys.executable, "-m", module],
            input=question,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)} | dict(variables or {}) | end,
            pass_fds=(reading,),
            timeout=timeout,
        )
