"""Environments with other versions of packages, which borrow the rest from this one."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from filelock import FileLock


def make_environment(name: str, *packages: str) -> Path:
    """Return the Python of an environment that has these packages, kept for the next time; skip if pip fails."""
    folder = Path(sys.prefix) / "environments" / name
    python = folder / "bin" / "python"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):  # pytest-xdist has two workers
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
            (packages_folder,) = folder.glob("lib/python*/site-packages")
            (packages_folder / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--upgrade"]
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be installed: {done.stderr[-300:]}")
    return python


def ask(python: Path, probe: str, question: dict[str, Any]) -> Any:
    """Run tests/support/PROBE.py in an environment, and return its answer to a question."""
    return json.loads(
        call(python, ROOT / "tests" / "support" / f"{probe}.py", input=json.dumps(question)).splitlines()[-1]
    )


def call(python: Path, *words: str | Path, input: str = "") -> str:
    """Run an environment's Python in the project's folder, and return what it prints."""
    command = [str(python), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, input=input, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
