"""Print the table of `make faults`: the targets and results of the whole harness."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from faults.scale import TABLE, WHOLE


def pytest_configure() -> None:
    if WHOLE:
        os.environ.setdefault(TABLE, tempfile.mkdtemp())  # pytest's workers inherit it


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary() -> None:
    if not WHOLE or "PYTEST_XDIST_WORKER" in os.environ:
        return
    table = Table("area", "asked for", "reached")
    for path in sorted(Path(os.environ[TABLE]).glob("*.json")):
        table.add_row(*json.loads(path.read_text(encoding="utf-8")).values())
    Console(width=140).print(table)
    shutil.rmtree(os.environ[TABLE])
