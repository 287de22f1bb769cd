"""Set the import path for the scripts, and require .venv."""

import importlib.util
import os
import sys
from pathlib import Path

# Replaces scripts/, where train.py would hide the package `train`.
sys.path[0] = str(Path(__file__).resolve().parent.parent)
# For the processes that it starts, which may not find the packages otherwise.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

# Outside .venv, the imports that follow would end in a traceback.
_missing = [name for name in ("hydra", "pydantic", "torch") if not importlib.util.find_spec(name)]
if _missing:
    _bin = os.path.relpath(Path(sys.path[0], ".venv", "bin"))
    print(
        f"error: {sys.executable} has no {_missing[0]}: the environment of niels_gpt is not active\n"
        f"hint: source {_bin}/activate, or use {_bin}/python {sys.argv[0]} ...; make setup creates it",
        file=sys.stderr,
    )
    raise SystemExit(2)
