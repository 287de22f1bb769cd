"""Run all tests of tests/faults/ and print a table of the targets and results."""

import _root  # noqa: F401  isort: skip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from train.cli.command import run_command

TESTS = Path(__file__).resolve().parent.parent / "tests" / "faults"


def main() -> None:
    """Run pytest, print the table, and exit with pytest's code."""
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"NIELS_FAULTS": "whole", "NIELS_FAULTS_TABLE": folder}
        done = subprocess.run([sys.executable, "-m", "pytest", str(TESTS), *sys.argv[1:]], env=variables)
        rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    table = Table("area", "asked for", "reached")
    for row in rows:
        table.add_row(row["area"], row["asked"], row["reached"])
    Console(width=140).print(table)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    run_command(main)
